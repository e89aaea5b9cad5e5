//! `rollcall status`.

use std::future::IntoFuture as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rollcall::{Error, Reason};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::args::{Global, StatusArgs};
use super::escape::json_page;
use super::exit::{Failure, Outcome, UNREACHABLE};
use super::term::{Row, Style, Tone, print, table};
use super::waiting::patiently;

/// How long a replica's metrics may take.
const METRICS: Duration = Duration::from_secs(1);

/// The most bytes that are read of a page: whatever answers on the port may have no end.
const LONGEST: u64 = 4 << 20;

/// How a replica stands.
struct Replica {
    name: String,
    state: &'static str,
    zookeeper: &'static str,
    answered_in: Option<Duration>,
    metrics: Option<Metrics>,
    trouble: Option<String>,
}

/// What a replica counts.
struct Metrics(String);

impl Metrics {
    /// A gauge without labels.
    fn gauge(&self, name: &str) -> Option<u64> {
        let value = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        value.trim().parse().ok()
    }

    /// The version, where the replica tells it.
    fn version(&self) -> Option<&str> {
        let line = self.0.lines().find(|line| line.starts_with("rollcall_build_info{"))?;
        line.split("version=\"").nth(1)?.split('"').next()
    }
}

pub(crate) async fn run(global: &Global, args: &StatusArgs) -> Outcome {
    let names = global.server.split(',').map(str::trim).filter(|name| !name.is_empty());
    let replicas = join_all(names.map(|name| look(global, name, args.http_port))).await;
    let replicas = replicas.into_iter().collect::<Result<Vec<_>, _>>()?;
    print(&if args.output.is_json() { to_json(&replicas) } else { to_table(&replicas, Style::of(global)) })?;
    match replicas.iter().any(|replica| replica.answered_in.is_some()) {
        true => Ok(ExitCode::SUCCESS),
        false => Err(Failure::new(UNREACHABLE, "no replica answers")),
    }
}

async fn look(global: &Global, name: &str, http_port: u16) -> Result<Replica, Failure> {
    let client = global.client_of(name)?;
    let begun = Instant::now();
    let what = format!("the status of {name}");
    let answer = patiently(&client, &what, client.get("/").latest().into_future()).await;
    let answered_in = begun.elapsed();
    let (state, zookeeper, answered_in, trouble) = match answer {
        Ok(_) => ("serving", "connected", Some(answered_in), None),
        Err(Error::Refused(refusal)) if *refusal.reason() == Reason::BackendUnavailable => {
            ("serving", "away", Some(answered_in), None)
        }
        Err(error @ Error::Unreachable { .. }) => ("unreachable", "-", None, Some(error.to_string())),
        Err(error) => ("refusing", "-", Some(answered_in), Some(error.to_string())),
    };
    let host = name.split("://").last().and_then(|name| name.rsplit_once(':')).map_or(name, |(host, _)| host);
    let page = |page: &'static str| timeout(METRICS, http_get(format!("{host}:{http_port}"), page));
    let metrics = page("/metrics").await.ok().flatten().filter(|text| text.contains("rollcall_streams")).map(Metrics);
    let ready = page("/readyz").await.ok().flatten();
    let drains = metrics.is_some() && ready.is_some_and(|text| text.trim_end().ends_with("draining"));
    let state = if drains { "draining" } else { state };
    Ok(Replica { name: name.to_owned(), state, zookeeper, answered_in, metrics, trouble })
}

async fn http_get(address: String, page: &str) -> Option<String> {
    let mut stream = TcpStream::connect(&address).await.ok()?;
    let request = format!("GET {page} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.take(LONGEST).read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

fn to_table(replicas: &[Replica], style: Style) -> String {
    let rows: Vec<_> = replicas
        .iter()
        .map(|replica| {
            let gauge = |name: &str| replica.metrics.as_ref().and_then(|metrics| metrics.gauge(name));
            let shown = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
            let rtt = replica.answered_in.map_or_else(|| "-".to_owned(), |time| format!("{} ms", time.as_millis()));
            let version = replica.metrics.as_ref().and_then(Metrics::version).unwrap_or("-");
            let tone = if replica.state == "serving" { Tone::Good } else { Tone::Bad };
            let cells = vec![
                replica.name.clone(),
                replica.state.to_owned(),
                replica.zookeeper.to_owned(),
                rtt,
                version.to_owned(),
                shown(gauge("rollcall_streams")),
                shown(gauge("rollcall_views")),
                shown(gauge("rollcall_zookeeper_sessions")),
            ];
            Row { tone, cells }
        })
        .collect();
    let head = ["SERVER", "STATE", "ZOOKEEPER", "ANSWER", "VERSION", "STREAMS", "VIEWS", "SESSIONS"];
    let mut text = table(style, &head, &rows);
    for replica in replicas {
        if let Some(trouble) = &replica.trouble {
            text.push_str(&style.paint(Tone::Bad, &format!("{}: {trouble}", replica.name)));
            text.push('\n');
        }
    }
    text
}

fn to_json(replicas: &[Replica]) -> String {
    let replicas: Vec<_> = replicas
        .iter()
        .map(|replica| {
            let gauge = |name: &str| replica.metrics.as_ref().and_then(|metrics| metrics.gauge(name));
            json!({
                "server": replica.name,
                "state": replica.state,
                "zookeeper": replica.zookeeper,
                "answer_seconds": replica.answered_in.map(|time| time.as_secs_f64()),
                "version": replica.metrics.as_ref().and_then(Metrics::version),
                "streams": gauge("rollcall_streams"),
                "views": gauge("rollcall_views"),
                "zookeeper_sessions": gauge("rollcall_zookeeper_sessions"),
                "trouble": replica.trouble,
            })
        })
        .collect();
    json_page(&json!(replicas))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read() {
        let metrics = Metrics("# HELP x\nrollcall_streams 3\nrollcall_build_info{version=\"1.2.3\"} 1\n".to_owned());
        assert_eq!(metrics.gauge("rollcall_streams"), Some(3));
        assert_eq!(metrics.gauge("rollcall_views"), None);
        assert_eq!(metrics.version(), Some("1.2.3"));
    }
}
