//! The types of the domain: paths, and numbers that must not be mixed up.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

pub(crate) use rollcall_wire::Stat;

/// Maximum length of a path that is accepted, in bytes.
pub(crate) const MAX_PATH_BYTES: usize = 4096;

/// Maximum depth of a path that is accepted, in levels. Creating or deleting a node costs the replica and ZooKeeper one
/// step a level, so this bounds the cost of one request. ZooKeeper keeps the nodes that clients make for good.
pub(crate) const MAX_PATH_LEVELS: usize = 128;

/// The subtree that ZooKeeper keeps for itself: its configuration, and the quotas of other paths.
const ZOOKEEPER_ROOT: &str = "/zookeeper";

/// The subtree that Rollcall keeps for itself: hidden from lists, refused to clients.
pub(crate) const RESERVED_ROOT: &str = "/.rollcall";

/// An absolute path that ZooKeeper accepts, as clients name it (below the chroot). Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodePath(Arc<str>);

/// Why a text is no [`NodePath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    /// It is empty.
    #[error("path is empty")]
    Empty,
    /// It does not start with a slash.
    #[error("path must start with /")]
    Relative,
    /// It ends with a slash.
    #[error("path must not end with /")]
    TrailingSlash,
    /// Two slashes follow each other.
    #[error("path has an empty segment")]
    EmptySegment,
    /// A segment is `.` or `..`.
    #[error("path has a relative segment")]
    RelativeSegment,
    /// A character that ZooKeeper refuses.
    #[error("path has the character U+{0:04X}, which zookeeper refuses")]
    Character(u32),
    /// It is over [`MAX_PATH_BYTES`].
    #[error("path has {0} bytes, over the limit of {MAX_PATH_BYTES}")]
    TooLong(usize),
    /// It has more levels than [`MAX_PATH_LEVELS`].
    #[error("path has {0} levels, over the limit of {MAX_PATH_LEVELS}")]
    TooDeep(usize),
    /// It lies in [`RESERVED_ROOT`].
    #[error("{RESERVED_ROOT} is reserved")]
    Reserved,
    /// It lies in [`ZOOKEEPER_ROOT`], which can only be read.
    #[error("{ZOOKEEPER_ROOT} is zookeeper's own")]
    ZooKeepers,
    /// It is the root, which can't be used for this.
    #[error("the root can't be used for this")]
    Root,
}

impl NodePath {
    /// Checks a path that a client sent.
    ///
    /// # Errors
    /// A [`PathError`] that says what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, PathError> {
        let path = Self::parse_any(text)?;
        if path.is_reserved() { Err(PathError::Reserved) } else { Ok(path) }
    }

    /// Like [`NodePath::parse`], but the root is refused too: for nodes that are created or deleted.
    ///
    /// # Errors
    /// A [`PathError`] that says what is wrong.
    pub(crate) fn parse_below_root(text: &str) -> Result<Self, PathError> {
        let path = Self::parse(text)?;
        if path.is_root() { Err(PathError::Root) } else { Ok(path) }
    }

    fn parse_any(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong(text.len()));
        }
        if !text.starts_with('/') {
            return Err(PathError::Relative);
        }
        if let Some(refused) = text.chars().find(|&character| is_refused(character)) {
            return Err(PathError::Character(u32::from(refused)));
        }
        if text == "/" {
            return Ok(Self(text.into()));
        }
        if text.ends_with('/') {
            return Err(PathError::TrailingSlash);
        }
        for segment in text[1..].split('/') {
            match segment {
                "" => return Err(PathError::EmptySegment),
                "." | ".." => return Err(PathError::RelativeSegment),
                _ => {}
            }
        }
        let levels = text.bytes().filter(|byte| *byte == b'/').count();
        if levels > MAX_PATH_LEVELS {
            return Err(PathError::TooDeep(levels));
        }
        Ok(Self(text.into()))
    }

    /// A path that ZooKeeper or this program made, and that is therefore valid.
    #[must_use]
    pub(crate) fn trusted(path: impl Into<Arc<str>>) -> Self {
        Self(path.into())
    }

    /// The path as text.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is `/`.
    #[must_use]
    pub(crate) fn is_root(&self) -> bool {
        &*self.0 == "/"
    }

    /// Whether it lies in the subtree that Rollcall keeps for itself.
    #[must_use]
    pub(crate) fn is_reserved(&self) -> bool {
        self.is_within(RESERVED_ROOT)
    }

    /// Whether it lies in the subtree that ZooKeeper keeps for itself, where the path is not below a chroot.
    #[must_use]
    pub(crate) fn is_zookeepers(&self) -> bool {
        self.is_within(ZOOKEEPER_ROOT)
    }

    fn is_within(&self, root: &str) -> bool {
        self.0.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The parent; the root has none.
    #[must_use]
    pub(crate) fn parent(&self) -> Option<Self> {
        let slash = self.0.rfind('/')?;
        match (slash, self.is_root()) {
            (_, true) => None,
            (0, false) => Some(Self::trusted("/")),
            (slash, false) => Some(Self::trusted(&self.0[..slash])),
        }
    }

    /// The last segment; empty for the root.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The path of a child, or of a descendant when `name` is a relative path.
    #[must_use]
    pub(crate) fn join(&self, name: &str) -> Self {
        if self.is_root() { Self::trusted(format!("/{name}")) } else { Self::trusted(format!("{}/{name}", self.0)) }
    }

    /// The rest of `path` below this one (`b/c` for `/a/b/c` below `/a`); `None` if it does not lie below.
    #[must_use]
    pub(crate) fn relative<'a>(&self, path: &'a str) -> Option<&'a str> {
        let prefix = if self.is_root() { "" } else { &*self.0 };
        path.strip_prefix(prefix)?.strip_prefix('/').filter(|rest| !rest.is_empty())
    }
}

/// The paths at and above this one that a client can have named, the root first. None is deeper than
/// [`MAX_PATH_LEVELS`], though nodes of other programs may be.
pub(crate) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let below_root = path.match_indices('/').skip(1).map(|(slash, _)| &path[..slash]);
    let itself = (path != "/").then_some(path);
    std::iter::once("/").chain(below_root).chain(itself).take(MAX_PATH_LEVELS + 1)
}

/// ZooKeeper's own rule (`PathUtils.validatePath`): no control characters, no private use below U+F8FF, no specials;
/// and, since it looks at UTF-16, nothing beyond U+FFFF.
fn is_refused(character: char) -> bool {
    matches!(character, '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..)
}

impl Borrow<str> for NodePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for NodePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

macro_rules! number {
    ($(#[$docs:meta])* $name:ident) => {
        $(#[$docs])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub(crate) struct $name(pub(crate) i64);
    };
}

number! {
    /// A ZooKeeper transaction id.
    Zxid
}
impl Zxid {
    /// The number of the leader that made the transaction. Later leaders have larger numbers.
    pub(crate) fn epoch(self) -> i64 {
        self.0 >> 32
    }
}

number! {
    /// The incarnation of a registration: the znode's czxid. A later one is always larger.
    Generation
}
number! {
    /// The transaction id that dates the state of a watched path; the same on every replica.
    Revision
}
number! {
    /// The czxid of a lock's lease: rises with every grant.
    FencingToken
}
number! {
    /// The id of a ZooKeeper session.
    SessionId
}

#[cfg(test)]
mod tests {
    use super::{MAX_PATH_BYTES, MAX_PATH_LEVELS, NodePath, PathError, ancestors};

    #[test]
    fn bad_paths_are_named() {
        for (text, error) in [
            ("", PathError::Empty),
            ("a/b", PathError::Relative),
            ("/a//b", PathError::EmptySegment),
            ("/a/../b", PathError::RelativeSegment),
            ("/a/.", PathError::RelativeSegment),
            ("/a/", PathError::TrailingSlash),
            ("/a\0b", PathError::Character(0)),
            ("/😀", PathError::Character(0x1f600)),
            ("/.rollcall", PathError::Reserved),
            ("/.rollcall/fences", PathError::Reserved),
        ] {
            assert_eq!(NodePath::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(NodePath::parse(&format!("/{}", "x".repeat(10_240))), Err(PathError::TooLong(10_241)));
        assert_eq!(NodePath::parse_below_root("/"), Err(PathError::Root));
    }

    #[test]
    fn the_depth_is_bounded() {
        let deep = |levels| "/x".repeat(levels);
        assert!(NodePath::parse(&deep(MAX_PATH_LEVELS)).is_ok());
        let refused = NodePath::parse(&deep(MAX_PATH_LEVELS + 1)).unwrap_err();
        assert_eq!(refused.to_string(), "path has 129 levels, over the limit of 128");
    }

    #[test]
    fn ancestors_are_those_that_can_be_named() {
        assert_eq!(ancestors("/").collect::<Vec<_>>(), ["/"]);
        assert_eq!(ancestors("/a/b").collect::<Vec<_>>(), ["/", "/a", "/a/b"]);
        let deep = "/x".repeat(100_000);
        assert!(NodePath::parse(ancestors(&deep).last().unwrap()).is_ok());
        assert_eq!(ancestors(&deep).count(), MAX_PATH_LEVELS + 1);
    }

    #[test]
    fn zookeepers_own_subtree_is_known() {
        let is_own = |path| NodePath::parse(path).unwrap().is_zookeepers();
        assert!(is_own("/zookeeper") && is_own("/zookeeper/quota/a"));
        assert!(!is_own("/zookeeper2") && !is_own("/a/zookeeper") && !is_own("/"));
    }

    #[test]
    fn a_name_that_only_starts_like_the_reserved_root_is_accepted() {
        assert!(NodePath::parse("/.rollcall2").is_ok());
    }

    #[test]
    fn parents_and_children_fit() {
        let path = NodePath::parse("/a/b").unwrap();
        assert_eq!(path.parent(), Some(NodePath::trusted("/a")));
        assert_eq!(path.parent().unwrap().parent(), Some(NodePath::trusted("/")));
        assert_eq!(NodePath::trusted("/").parent(), None);
        assert_eq!(NodePath::trusted("/").join("a"), NodePath::trusted("/a"));
        assert_eq!(NodePath::trusted("/a").relative("/a/b/c"), Some("b/c"));
        assert_eq!(NodePath::trusted("/a").relative("/ab"), None);
        assert_eq!(NodePath::trusted("/").relative("/a"), Some("a"));
    }

    /// A segment of a path: any text, or one of those that the rules name.
    #[derive(Debug, bolero::TypeGenerator)]
    enum Segment {
        Any(String),
        Letter(#[generator('a'..='c')] char),
        Empty,
        Dot,
        DotDot,
        Reserved,
        ZooKeepers,
    }

    impl Segment {
        fn text(&self) -> String {
            match self {
                Self::Any(text) => text.clone(),
                Self::Letter(letter) => letter.to_string(),
                Self::Empty => String::new(),
                Self::Dot => ".".to_owned(),
                Self::DotDot => "..".to_owned(),
                Self::Reserved => ".rollcall".to_owned(),
                Self::ZooKeepers => "zookeeper".to_owned(),
            }
        }
    }

    /// The rules of `PathUtils.validatePath`, which looks at UTF-16, and of this server.
    fn is_accepted(text: &str) -> bool {
        let Some(names) = text.strip_prefix('/') else { return false };
        let names: Vec<_> = names.split('/').collect();
        let is_name = |name: &&str| !["", ".", ".."].contains(name);
        let is_character = |unit| !matches!(unit, 0..=0x1f | 0x7f..=0x9f | 0xd800..=0xf8ff | 0xfff0..=0xffff);
        (text == "/" || names.iter().all(is_name))
            && text.encode_utf16().all(is_character)
            && text.len() <= MAX_PATH_BYTES
            && names.len() <= MAX_PATH_LEVELS
            && names.first() != Some(&".rollcall")
    }

    #[test]
    fn fuzz_a_path_is_accepted_by_the_rules_and_falls_into_its_names() {
        bolero::check!().with_type::<(bool, Vec<Segment>)>().for_each(|(is_relative, segments)| {
            let text = segments.iter().map(Segment::text).collect::<Vec<_>>().join("/");
            let text = if *is_relative { text } else { format!("/{text}") };
            let parsed = NodePath::parse(&text);
            assert_eq!(parsed.is_ok(), is_accepted(&text), "{parsed:?}");
            assert_eq!(ancestors(&text).next(), Some("/"));
            let Ok(path) = parsed else { return };
            assert_eq!((path.as_str(), path.is_root()), (text.as_str(), text == "/"));
            assert_eq!(NodePath::parse_below_root(&text).is_ok(), !path.is_root());
            assert_eq!(ancestors(&text).last(), Some(path.as_str()));
            assert!(ancestors(&text).all(|ancestor| NodePath::parse(ancestor).is_ok()));
            match path.parent() {
                Some(parent) => {
                    assert_eq!(parent.join(path.name()), path);
                    assert_eq!(parent.relative(path.as_str()), Some(path.name()));
                    assert_eq!(ancestors(&text).count(), ancestors(parent.as_str()).count() + 1);
                }
                None => assert!(path.is_root() && path.name().is_empty()),
            }
        });
    }
}
