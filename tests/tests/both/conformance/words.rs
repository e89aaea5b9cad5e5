//! The four-letter words that report clients, sessions, watches and settings. The server does not use them; people who
//! look inside do. Values that differ between runs are masked; everything else is the same on every arm.

use std::time::Duration;

use rollcall_tests::arm::Own;
use rollcall_tests::raw::newcomer;
use rollcall_tests::zookeeper::{Options, four_letter_word};
use rollcall_wire::{CreateMode, Request, WatchMode};

use super::{ARM, Client, Ground};

/// A backend of its own with one client, which has watches and an ephemeral.
async fn looked_at() -> (Own, Client) {
    let own = ARM.own(Options { tick: Duration::from_secs(2), ..Options::default() }).await;
    let ground = Ground { address: own.address(), root: String::new() };
    let mut client = ground.open(&newcomer(super::LIFETIME)).await.unwrap();
    client.create("/mine", CreateMode::Ephemeral).await;
    client.done(Request::Exists { path: "/mine".into(), watch: true }).await;
    client.done(Request::GetChildren { path: "/".into(), watch: true }).await;
    client.done(Request::AddWatch { path: "/deep".into(), mode: WatchMode::PersistentRecursive }).await;
    (own, client)
}

async fn told(own: &Own, word: &str) -> String {
    four_letter_word(own.address(), word).await.unwrap()
}

/// The text with `#` in place of each number that follows one of these marks.
fn masked(text: &str, marks: &[&str]) -> String {
    let mut masked = String::new();
    let mut rest = text;
    while let Some((at, mark)) = marks.iter().filter_map(|mark| Some((rest.find(mark)?, mark))).min() {
        let (before, after) = rest.split_at(at + mark.len());
        let end = after.find(|ends: char| !ends.is_ascii_alphanumeric() && ends != '.').unwrap_or(after.len());
        masked.push_str(before);
        masked.push('#');
        rest = &after[end..];
    }
    masked + rest
}

/// The lines with this beginning.
fn lines<'a>(text: &'a str, beginning: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.starts_with(beginning)).collect()
}

#[tokio::test]
async fn stat_lists_clients_and_is_srvr_otherwise() {
    let (own, _client) = looked_at().await;
    let stat = told(&own, "stat").await;
    // ZooKeeper may still count the last answer as queued.
    let marks = ["127.0.0.1:", "Received: ", "Sent: ", "max: ", "version: ", "Zxid: ", "recved=", "queued="];
    let masked = masked(&stat, &marks);
    let (version, rest) = masked.split_once('\n').unwrap();
    assert!(version.starts_with("Zookeeper version: #-"), "{version}");
    let (clients, rest) = rest.split_once("\n\n").unwrap();
    let mut clients: Vec<_> = clients.lines().collect();
    clients.sort_unstable();
    let asking = " /127.0.0.1:#[0](queued=#,recved=#,sent=0)";
    assert_eq!(clients, [asking, " /127.0.0.1:#[1](queued=#,recved=#,sent=5)", "Clients:"]);
    let own_lines: Vec<_> = rest.lines().filter(|line| !line.starts_with("Latency")).collect();
    assert_eq!(
        own_lines,
        ["Received: #", "Sent: #", "Connections: 2", "Outstanding: 0", "Zxid: #", "Mode: standalone", "Node count: 6"]
    );
}

#[tokio::test]
async fn cons_tells_what_each_client_does() {
    let (own, client) = looked_at().await;
    let cons = told(&own, "cons").await;
    assert!(cons.ends_with(")\n\n"), "{cons:?}");
    let lines: Vec<_> = cons.lines().filter(|line| line.contains("sid=")).collect();
    // ZooKeeper may still count the last answer as queued.
    let marks = ["127.0.0.1:", "queued=", "est=", "lzxid=0x", "lresp=", "llat=", "minlat=", "avglat=", "maxlat="];
    let expected = format!(
        " /127.0.0.1:#[1](queued=#,recved=5,sent=5,sid={:#x},lop=ADDW,est=#,to=30000,lcxid=0x4,lzxid=0x#,lresp=#,llat=#,\
         minlat=#,avglat=#,maxlat=#)",
        client.id()
    );
    assert_eq!(lines.iter().map(|line| masked(line, &marks)).collect::<Vec<_>>(), [expected]);
    assert_eq!(told(&own, "crst").await, "Connection stats reset.\n");
    let cons = told(&own, "cons").await;
    assert!(cons.contains("recved=0,sent=0,sid=0x") && cons.contains(",lop=NA,") && !cons.contains("lcxid"), "{cons}");
    assert_eq!(told(&own, "srst").await, "Server stats reset.\n");
}

#[tokio::test]
async fn dump_tells_of_sessions_ephemerals_and_connections() {
    let (own, client) = looked_at().await;
    let dump = told(&own, "dump").await;
    let id = format!("{:#x}", client.id());
    let session = format!("\n\t{id}\n");
    assert!(dump.starts_with("SessionTracker dump:\nSession Sets ("), "{dump}");
    assert!(dump.contains(&session), "{dump}");
    let ephemerals =
        format!("ephemeral nodes dump:\nSessions with Ephemerals (1):\n{id}:\n\t/mine\nConnections dump:\n");
    assert!(dump.contains(&ephemerals), "{dump}");
    let connections = dump.rsplit_once("Connections dump:\n").unwrap().1;
    assert!(connections.starts_with("Connections Sets ("), "{dump}");
    assert!(masked(connections, &["127.0.0.1:"]).contains(&format!("\tip: /127.0.0.1:# sessionId: {id}\n")), "{dump}");
    let ends: Vec<_> = dump.lines().filter_map(|line| line.split_once(" expire at ")).collect();
    assert!(!ends.is_empty());
    for (count, date) in ends {
        // For example: Tue Dec 01 10:22:22 UTC 2026:
        let parts: Vec<_> = date.split(' ').map(str::len).collect();
        assert!(count.parse::<usize>().is_ok() && parts[..4] == [3, 3, 2, 8] && parts[5] == 5, "{date}");
    }
}

#[tokio::test]
async fn wchs_wchc_and_wchp_tell_of_watches_for_data() {
    let (own, client) = looked_at().await;
    let id = format!("{:#x}", client.id());
    assert_eq!(told(&own, "wchs").await, "1 connections watching 2 paths\nTotal watches:2\n");
    let by_session = told(&own, "wchc").await;
    let mut paths: Vec<_> = by_session.lines().collect();
    paths.sort_unstable();
    assert_eq!(paths, ["", "\t/deep", "\t/mine", &id], "{by_session}");
    assert!(by_session.starts_with(&id) && by_session.ends_with("\n\n"), "{by_session:?}");
    let by_path = told(&own, "wchp").await;
    let (one, other) = (format!("/deep\n\t{id}\n"), format!("/mine\n\t{id}\n"));
    assert!([format!("{one}{other}\n"), format!("{other}{one}\n")].contains(&by_path), "{by_path:?}");
}

#[tokio::test]
async fn conf_and_dirs_tell_the_settings() {
    let (own, _client) = looked_at().await;
    let conf = told(&own, "conf").await;
    let names: Vec<_> = conf.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert_eq!(
        names[..12],
        [
            "clientPort",
            "secureClientPort",
            "dataDir",
            "dataDirSize",
            "dataLogDir",
            "dataLogSize",
            "tickTime",
            "maxClientCnxns",
            "minSessionTimeout",
            "maxSessionTimeout",
            "clientPortListenBacklog",
            "serverId",
        ],
        "{conf}"
    );
    for line in [
        format!("clientPort={}", own.address().port()),
        "secureClientPort=-1".to_owned(),
        "tickTime=2000".to_owned(),
        "minSessionTimeout=100".to_owned(),
        "maxSessionTimeout=600000".to_owned(),
        "clientPortListenBacklog=-1".to_owned(),
        "serverId=0".to_owned(),
    ] {
        assert_eq!(lines(&conf, line.split_once('=').unwrap().0)[0], line);
    }
    let dirs = told(&own, "dirs").await;
    assert_eq!(masked(&dirs, &["size: "]), "datadir_size: #\nlogdir_size: #\n");
}
