//! The rules for paths of nodes, as ZooKeeper checks them.

use rollcall_wire::ErrorCode;

/// Nodes that can't be deleted.
const SPECIAL: [&str; 4] = ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"];

/// Checks a path that a write names.
pub(crate) fn validate(path: &str) -> Result<(), ErrorCode> {
    let Some(names) = path.strip_prefix('/') else { return Err(ErrorCode::BadArguments) };
    if names.is_empty() || names.split('/').all(is_name) { Ok(()) } else { Err(ErrorCode::BadArguments) }
}

fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.chars().all(is_allowed)
}

/// ZooKeeper looks at UTF-16 units: a character beyond U+FFFF is a pair of surrogates there, and refused.
fn is_allowed(character: char) -> bool {
    !matches!(character, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..)
}

/// The parent of a path that is to be created, before anything else about the path has been checked. The root's
/// children have the parent `""`, another name of the root.
pub(crate) fn parent_for_create(path: &str) -> Result<&str, ErrorCode> {
    match path.rfind('/') {
        Some(slash) if !path.contains('\0') => Ok(&path[..slash]),
        _ => Err(ErrorCode::BadArguments),
    }
}

/// The parent of a path that is to be deleted.
pub(crate) fn parent_for_delete(path: &str) -> Result<&str, ErrorCode> {
    if SPECIAL.contains(&path) { Err(ErrorCode::BadArguments) } else { parent_for_create(path) }
}

/// A node's parent and its name in it; `None` for the root.
pub(crate) fn split(path: &str) -> Option<(&str, &str)> {
    match path.rsplit_once('/') {
        None | Some((_, "")) => None,
        Some(("", name)) => Some(("/", name)),
        Some(parts) => Some(parts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_refused_as_zookeeper_refuses_them() {
        for good in ["/", "/a", "/a/b.c", "/...", "/a..b", "/ü\u{a0}", "/a/..b", "/\u{ffef}"] {
            assert_eq!(validate(good), Ok(()), "{good:?}");
        }
        for bad in [
            "",
            "a",
            "/a/",
            "//",
            "/a//b",
            "/.",
            "/a/..",
            "/a/./b",
            "/\u{1}",
            "/\u{7f}",
            "/\u{e000}",
            "/\u{fffd}",
            "/😀",
        ] {
            assert_eq!(validate(bad), Err(ErrorCode::BadArguments), "{bad:?}");
        }
    }

    #[test]
    fn parents_and_names() {
        assert_eq!(split("/"), None);
        assert_eq!(split("/a"), Some(("/", "a")));
        assert_eq!(split("/a/b"), Some(("/a", "b")));
        assert_eq!(parent_for_create("/a"), Ok(""));
        assert_eq!(parent_for_create("a"), Err(ErrorCode::BadArguments));
        assert_eq!(parent_for_delete("/zookeeper"), Err(ErrorCode::BadArguments));
    }

    /// As `PathUtils.validatePath` of ZooKeeper has it, which looks at UTF-16.
    fn is_valid(path: &str) -> bool {
        let is_character = |unit| !matches!(unit, 0..=0x1f | 0x7f..=0x9f | 0xd800..=0xf8ff | 0xfff0..=0xffff);
        path == "/"
            || path.starts_with('/')
                && !path.ends_with('/')
                && !format!("{path}/").contains("/./")
                && !format!("{path}/").contains("/../")
                && !path.contains("//")
                && path.encode_utf16().all(is_character)
    }

    #[test]
    fn fuzz_a_path_is_valid_by_zookeepers_rules_and_falls_into_parent_and_name() {
        bolero::check!().with_type::<(bool, Vec<(u8, String)>)>().for_each(|(is_relative, names)| {
            let names = names.iter().map(|(kind, name)| match kind % 8 {
                0 => ".",
                1 => "..",
                2 => "",
                3..=5 => "a",
                _ => name,
            });
            let path = names.collect::<Vec<_>>().join("/");
            let path = if *is_relative { path } else { format!("/{path}") };
            assert_eq!(validate(&path).is_ok(), is_valid(&path));
            let (created, deleted) = (parent_for_create(&path), parent_for_delete(&path));
            assert!(deleted == created || SPECIAL.contains(&path.as_str()));
            if let (Ok(()), Some((parent, name))) = (validate(&path), split(&path)) {
                assert_eq!(format!("{}/{name}", parent.trim_end_matches('/')), path);
                assert_eq!(created, Ok(parent.trim_end_matches('/')));
                assert!(validate(parent).is_ok() && is_name(name));
            }
        });
    }
}
