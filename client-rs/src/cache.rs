//! The cache file: the last known answers, for when no replica can be reached.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};
use serde_json::{Map, Value as Json, json};

use crate::node::{Child, Lookup, Node, Stat};
use crate::value::{Value, from_hex, to_hex};

/// Version of the file's format.
const VERSION: u64 = 1;

/// The last known answers of a client. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Cache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    known: Mutex<Known>,
    /// Held while the file is written. Lock order: `writing` before `known`; no other lock is taken while `known` is
    /// locked.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    answers: Answers,
    /// Whether an answer is not in the file yet.
    is_dirty: bool,
}

/// A question: the path, and whether it covers everything below.
type Question = (String, bool);
/// The answers, and the time at which each was current.
type Answers = BTreeMap<Question, (Arc<Lookup>, SystemTime)>;

impl Cache {
    /// Reads the file. A file that is missing or can't be understood counts as empty.
    pub(crate) fn open(file: PathBuf) -> Self {
        let answers = match fs::read(&file) {
            Ok(bytes) => parse(&bytes).unwrap_or_else(|| {
                tracing::warn!(file = %file.display(), "the cache file can't be understood, and is written anew");
                BTreeMap::new()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(file = %file.display(), %error, "the cache file can't be read");
                }
                BTreeMap::new()
            }
        };
        let known = Mutex::new(Known { answers, ..Known::default() });
        Self(Arc::new(Inner { file, known, writing: Mutex::default() }))
    }

    /// The known answer for a path, marked as stale.
    pub(crate) fn get(&self, path: &str, recursive: bool) -> Option<Lookup> {
        let known = self.known();
        let (lookup, as_of) = known.answers.get(&(path.to_owned(), recursive))?;
        Some(Lookup { stale: true, as_of: Some(*as_of), ..Lookup::clone(lookup) })
    }

    /// Keeps an answer, if it is news.
    pub(crate) async fn remember(&self, recursive: bool, lookup: Arc<Lookup>) {
        if self.put(recursive, lookup) {
            self.clone().save().await;
        }
    }

    /// Keeps an answer in memory, and returns whether it was news. A stale answer is not kept. An empty list never
    /// replaces a list with names: the last known names are more use than none.
    fn put(&self, recursive: bool, lookup: Arc<Lookup>) -> bool {
        let key = (lookup.node.path.clone(), recursive);
        let mut known = self.known();
        let is_old = known.answers.get(&key).is_some_and(|(before, _)| {
            before.node == lookup.node || (lookup.node.children.is_empty() && !before.node.children.is_empty())
        });
        if lookup.stale || lookup.node.path.is_empty() || is_old {
            return false;
        }
        known.answers.insert(key, (lookup, SystemTime::now()));
        known.is_dirty = true;
        true
    }

    async fn save(self) {
        // A file system that hangs must not hang the program.
        let file = self.0.file.clone();
        match tokio::task::spawn_blocking(move || self.write()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(file = %file.display(), %error, "the cache file can't be written"),
            Err(error) => tracing::warn!(file = %file.display(), %error, "writing the cache file failed"),
        }
    }

    fn write(&self) -> io::Result<()> {
        let _writing = self.0.writing.lock();
        let answers = {
            let mut known = self.known();
            if !std::mem::take(&mut known.is_dirty) {
                return Ok(());
            }
            known.answers.clone()
        };
        let written = replace(&self.0.file, &render(&answers));
        if written.is_err() {
            self.known().is_dirty = true;
        }
        written
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock()
    }
}

/// Replaces a file by one that only its owner can read. A reader sees either the old file or the new one, whole.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(name);
    let write = || {
        // A file that a crash has left may be readable by others.
        let _ = fs::remove_file(&new);
        let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        open.write_all(text.as_bytes())?;
        open.sync_all()?;
        fs::rename(&new, file)
    };
    write().inspect_err(|_| drop(fs::remove_file(&new)))
}

fn render(answers: &Answers) -> String {
    let answers: Vec<_> =
        answers.iter().map(|((path, recursive), (lookup, as_of))| answer(path, *recursive, lookup, *as_of)).collect();
    format!("{:#}\n", json!({ "version": VERSION, "answers": answers }))
}

fn answer(path: &str, recursive: bool, lookup: &Lookup, as_of: SystemTime) -> Json {
    let since = as_of.duration_since(UNIX_EPOCH).unwrap_or_default();
    let node = &lookup.node;
    let children: Map<_, _> =
        node.children.iter().map(|(name, child)| (name.clone(), entry(child.value.as_ref(), child.stat))).collect();
    json!({
        "path": path,
        "recursive": recursive,
        "as_of_ms": u64::try_from(since.as_millis()).unwrap_or_default(),
        "revision": lookup.revision,
        "exists": node.exists,
        "node": entry(node.value.as_ref(), node.stat),
        "children": children,
    })
}

fn entry(value: Option<&Value>, stat: Option<Stat>) -> Json {
    let value = value.map(|value| match value {
        Value::Data(fields) => json!({ "data": fields }),
        Value::Text(text) => json!({ "text": text }),
        Value::Raw(bytes) => json!({ "raw": to_hex(bytes) }),
    });
    json!({ "value": value, "stat": stat.map(numbers) })
}

/// A stat as a list of numbers. With names for them it would be the larger part of most entries.
fn numbers(stat: Stat) -> [i64; 11] {
    [
        stat.czxid,
        stat.mzxid,
        stat.pzxid,
        stat.ctime,
        stat.mtime,
        stat.version.into(),
        stat.cversion.into(),
        stat.aversion.into(),
        stat.ephemeral_owner,
        stat.data_length.into(),
        stat.num_children.into(),
    ]
}

fn parse(bytes: &[u8]) -> Option<Answers> {
    let file: Json = serde_json::from_slice(bytes).ok()?;
    if file.get("version")?.as_u64()? != VERSION {
        return None;
    }
    file.get("answers")?.as_array()?.iter().map(parse_answer).collect()
}

fn parse_answer(answer: &Json) -> Option<(Question, (Arc<Lookup>, SystemTime))> {
    let (path, recursive) = (answer.get("path")?.as_str()?.to_owned(), answer.get("recursive")?.as_bool()?);
    let own = parse_entry(answer.get("node")?)?;
    let children = answer.get("children")?.as_object()?;
    let children = children.iter().map(|(name, child)| Some((name.clone(), parse_entry(child)?)));
    let node = Node {
        path: path.clone(),
        exists: answer.get("exists")?.as_bool()?,
        value: own.value,
        stat: own.stat,
        children: children.collect::<Option<_>>()?,
    };
    let as_of = UNIX_EPOCH.checked_add(Duration::from_millis(answer.get("as_of_ms")?.as_u64()?))?;
    let lookup = Lookup { node, revision: answer.get("revision")?.as_i64()?, stale: false, as_of: None };
    Some(((path, recursive), (Arc::new(lookup), as_of)))
}

fn parse_entry(entry: &Json) -> Option<Child> {
    let value = match entry.get("value")? {
        Json::Null => None,
        Json::Object(value) => Some(match value.iter().next()? {
            (key, Json::Object(fields)) if key == "data" => Value::Data(fields.clone()),
            (key, Json::String(text)) if key == "text" => Value::Text(text.clone()),
            (key, Json::String(text)) if key == "raw" => Value::Raw(from_hex(text)?),
            _ => return None,
        }),
        _ => return None,
    };
    let stat = match entry.get("stat")? {
        Json::Null => None,
        stat => Some(parse_stat(stat)?),
    };
    Some(Child { value, stat })
}

fn parse_stat(stat: &Json) -> Option<Stat> {
    let numbers: Vec<i64> = stat.as_array()?.iter().map(Json::as_i64).collect::<Option<_>>()?;
    let [czxid, mzxid, pzxid, ctime, mtime, version, cversion, aversion, ephemeral_owner, data_length, num_children] =
        <[i64; 11]>::try_from(numbers).ok()?;
    let small = |number: i64| i32::try_from(number).ok();
    Some(Stat {
        czxid,
        mzxid,
        pzxid,
        ctime,
        mtime,
        version: small(version)?,
        cversion: small(cversion)?,
        aversion: small(aversion)?,
        ephemeral_owner,
        data_length: small(data_length)?,
        num_children: small(num_children)?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn lookup(names: &[&str]) -> Lookup {
        let stat = Stat { czxid: 1 << 40, version: 3, ..Stat::default() };
        let value = Value::from_data(json!({"port": 22})).unwrap();
        let child = Child { value: Some(value), stat: Some(stat) };
        let children = names.iter().map(|name| ((*name).to_owned(), child.clone())).collect();
        let value = Some(Value::Raw(vec![0, 255].into()));
        let node = Node { path: "/a".to_owned(), exists: true, value, stat: None, children };
        Lookup { node, revision: 7, stale: false, as_of: None }
    }

    fn put(cache: &Cache, lookup: &Lookup) -> bool {
        cache.put(false, Arc::new(lookup.clone()))
    }

    fn file() -> (PathBuf, impl Drop) {
        struct Directory(PathBuf);
        impl Drop for Directory {
            fn drop(&mut self) {
                drop(fs::remove_dir_all(&self.0));
            }
        }
        let directory = std::env::temp_dir().join(format!("rollcall-cache-{:016x}", rand::random::<u64>()));
        fs::create_dir(&directory).unwrap();
        (directory.join("cache.json"), Directory(directory))
    }

    #[test]
    fn what_was_written_is_known_again_and_says_that_it_is_stale() {
        let (file, _directory) = file();
        let cache = Cache::open(file.clone());
        assert!(cache.get("/a", false).is_none());
        assert!(put(&cache, &lookup(&["x", "y"])));
        cache.write().unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        let again = Cache::open(file).get("/a", false).unwrap();
        assert_eq!(again.node, lookup(&["x", "y"]).node);
        assert!(again.stale && again.as_of.is_some() && again.revision == 7);
    }

    #[test]
    fn an_empty_list_or_a_stale_one_never_replaces_a_known_one() {
        let (file, _directory) = file();
        let cache = Cache::open(file);
        assert!(put(&cache, &lookup(&[])));
        assert!(put(&cache, &lookup(&["x"])));
        assert!(!put(&cache, &lookup(&["x"])), "no news");
        assert!(!put(&cache, &lookup(&[])));
        assert!(!put(&cache, &Lookup { stale: true, ..lookup(&["x", "y"]) }));
        assert_eq!(cache.get("/a", false).unwrap().node.children.len(), 1);
        assert!(put(&cache, &lookup(&["z"])));
    }

    #[test]
    fn a_file_that_is_no_cache_counts_as_empty() {
        let (file, _directory) = file();
        for text in ["", "{}", "[1", r#"{"version":2,"answers":[]}"#, r#"{"version":1,"answers":[{}]}"#] {
            fs::write(&file, text).unwrap();
            assert!(Cache::open(file.clone()).get("/a", false).is_none(), "{text}");
        }
    }

    #[derive(Debug, bolero::TypeGenerator)]
    struct DrawnChild {
        name: String,
        value: Option<(u8, String, Vec<u8>)>,
        stat: Option<([i64; 6], [i32; 5])>,
    }

    impl DrawnChild {
        fn child(&self) -> (String, Child) {
            let value = self.value.as_ref().map(|(kind, text, bytes)| match kind % 3 {
                0 => Value::from_data(json!({ "text": text, "list": bytes })).unwrap(),
                1 => Value::Text(text.clone()),
                _ => Value::Raw(bytes.clone().into()),
            });
            let stat = self.stat.map(|(longs, ints)| Stat {
                czxid: longs[0],
                mzxid: longs[1],
                pzxid: longs[2],
                ctime: longs[3],
                mtime: longs[4],
                version: ints[0],
                cversion: ints[1],
                aversion: ints[2],
                ephemeral_owner: longs[5],
                data_length: ints[3],
                num_children: ints[4],
            });
            (self.name.clone(), Child { value, stat })
        }
    }

    #[test]
    fn fuzz_answers_are_read_as_they_were_written_and_any_other_file_without_a_panic() {
        type Input = (String, (bool, bool, i64, u64), Vec<DrawnChild>, Vec<(usize, u8)>);
        bolero::check!().with_type::<Input>().for_each(|(path, (recursive, exists, revision, ms), drawn, changes)| {
            let mut children: BTreeMap<_, _> = drawn.iter().map(DrawnChild::child).collect();
            let Child { value, stat } = children.pop_first().map(|(_, child)| child).unwrap_or_default();
            let node = Node { path: path.clone(), exists: *exists, value, stat, children };
            let lookup = Lookup { node, revision: *revision, stale: false, as_of: None };
            let as_of = UNIX_EPOCH + Duration::from_millis(*ms);
            let answers = Answers::from([((path.clone(), *recursive), (Arc::new(lookup), as_of))]);
            let mut file = render(&answers).into_bytes();
            assert_eq!(parse(&file), Some(answers));
            for (at, byte) in changes {
                let length = file.len();
                file[at % length] = *byte;
            }
            if let Some(changed) = parse(&file) {
                assert_eq!(parse(render(&changed).as_bytes()), Some(changed));
            }
        });
    }
}
