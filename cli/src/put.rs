//! `rollcall put`.

use std::future::IntoFuture as _;
use std::io::{IsTerminal as _, Read as _, stdin};
use std::process::ExitCode;

use bytes::Bytes;
use rollcall::{Client, Value};
use serde_json::Value as Json;

use super::args::PutArgs;
use super::exit::{Failure, Outcome};
use super::term::{parse_data, print};
use super::waiting::patiently;

/// Maximum number of bytes that are read from standard input. It is more than any node can hold.
const MOST: u64 = 4 << 20;

pub(crate) async fn run(client: &Client, args: PutArgs) -> Outcome {
    let what = format!("the write of {}", args.path);
    let value = match args.text {
        Some(text) => Some(Value::Text(text)),
        None if !args.data.is_empty() => Some(Value::Data(parse_data(&args.data)?)),
        None if args.empty => None,
        None => Some(read()?),
    };
    let mut put = client.put(args.path);
    if let Some(value) = value {
        put = put.value(value);
    }
    if let Some(version) = args.version {
        put = put.if_version(version);
    }
    if args.create {
        put = put.create_only();
    }
    let stat = patiently(client, &what, put.into_future()).await?;
    print(&format!("version {}", stat.version))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the value from standard input. Empty input is more often a mistake than intended.
fn read() -> Result<Value, Failure> {
    const HINT: &str = "give --data or --text, or --empty for a node that holds nothing";
    if stdin().is_terminal() {
        return Err(Failure::usage(format!("there is nothing to write: {HINT}")));
    }
    let mut bytes = Vec::new();
    stdin().lock().take(MOST).read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        return Err(Failure::usage(format!("standard input is empty: {HINT}")));
    }
    Ok(value_of(bytes))
}

/// A JSON object as data, other text as text, the rest as bytes.
fn value_of(bytes: Vec<u8>) -> Value {
    match String::from_utf8(bytes) {
        Ok(text) => match serde_json::from_str(&text) {
            Ok(Json::Object(fields)) => Value::Data(fields),
            _ => Value::Text(text),
        },
        Err(error) => Value::Raw(Bytes::from(error.into_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn input_is_taken_for_what_it_is() {
        assert_eq!(value_of(b"{\"a\": 1}\n".to_vec()), Value::from_data(json!({"a": 1})).unwrap());
        assert_eq!(value_of(b"[1]".to_vec()), "[1]".into());
        assert_eq!(value_of(b"hello\n".to_vec()), "hello\n".into());
        assert_eq!(value_of(vec![0xff]), Value::Raw(Bytes::from_static(&[0xff])));
    }
}
