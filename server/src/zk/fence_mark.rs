//! The data of a fence: the name of the replica that owns it.

use bytes::Bytes;
use serde_json::{Value, json};

/// Maximum length of a name, in bytes.
pub(crate) const LONGEST_NAME: usize = 256;

/// The data that the owner of a fence writes into it.
pub(super) fn mark(name: &str) -> Bytes {
    json!({ "replica": name }).to_string().into()
}

/// The name in the data of a fence; `None` if no replica wrote it.
pub(super) fn parse(data: &[u8]) -> Option<String> {
    const LONGEST_MARK: usize = 4 * LONGEST_NAME;
    let data = data.get(..data.len().min(LONGEST_MARK))?;
    let value: Value = serde_json::from_slice(data).ok()?;
    let name = value.get("replica")?.as_str()?;
    (name.len() <= LONGEST_NAME).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written_and_nothing_else_is() {
        assert_eq!(parse(&mark("host \"1\":7700")).as_deref(), Some("host \"1\":7700"));
        for other in ["", "/.rollcall/fences/0000000000000001", "{}", "[]", r#"{"replica":1}"#] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
        assert_eq!(parse(&mark(&"x".repeat(LONGEST_NAME + 1))), None);
    }
}
