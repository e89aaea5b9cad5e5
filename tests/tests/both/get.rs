//! Get: what is read, how it is shown, waiting and paging.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_proto::v1;
use rollcall_proto::v1::{Consistency, GetRequest, WatchRequest};
use rollcall_tests::client::{Client, Registration, data, get, latest, put, shown, span, text};
use rollcall_tests::follow::Watching;
use rollcall_tests::wait::{eventually, soon};
use serde_json::{Value as Json, json};

use super::ARM;

async fn read(client: &Client, request: GetRequest) -> v1::GetResponse {
    soon("an answer to Get", client.clone().get(request)).await.expect("Get succeeds").into_inner()
}

fn cached(path: &str) -> GetRequest {
    GetRequest { path: path.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn an_absent_path_is_an_answer() {
    let s = ARM.setting("get").await;
    for request in [cached("/absent/path"), latest("/absent/path")] {
        let answer = read(&s.client, request).await;
        let node = answer.node.unwrap();
        assert_eq!((node.path.as_str(), node.exists, node.children.len()), ("/absent/path", false, 0));
        assert!(node.value.is_none() && !answer.stale);
    }
}

#[tokio::test]
async fn a_path_of_many_segments_is_one_like_any_other() {
    let s = ARM.setting("get").await;
    let path = "/a".repeat(128);
    assert!(!get(&s.client, &path).await.exists);
    s.zk.create("/a", b"").await;
    assert!(!get(&s.client, &path).await.exists);
    put(&s.client, &path, text("deep")).await.unwrap();
    assert_eq!(shown(get(&s.client, &path).await.value.as_ref()), json!({"text": "deep"}));
}

#[tokio::test]
async fn what_others_have_made_deeper_than_a_path_may_be_is_read_from_above() {
    let s = ARM.setting("get").await;
    let path = "/a".repeat(600);
    s.zk.create(&path, b"deep").await;
    let answer = read(&s.client, GetRequest { recursive: true, ..latest("/a/a") }).await;
    let children = answer.node.unwrap().children;
    assert_eq!(children.len(), 598);
    let deepest = &path[5..];
    assert_eq!(shown(children[deepest].value.as_ref()), json!({"text": "deep"}));
    // Changes there are seen, too.
    let watched = WatchRequest { path: "/a/a".to_owned(), recursive: true, ..Default::default() };
    let mut watching = Watching::start_with(&s.client, watched).await;
    s.zk.set(&path, b"deeper").await;
    watching.until("the change far below", |known| known.child(deepest) == json!({"text": "deeper"})).await;
}

#[tokio::test]
async fn a_node_comes_with_its_children_and_their_data() {
    let s = ARM.setting("get").await;
    s.zk.create("/parent", br#"{"limit":5}"#).await;
    s.zk.create("/parent/a", b"text").await;
    s.zk.create("/parent/a/deeper", b"not shown").await;
    s.zk.create_ephemeral("/parent/b", b"").await;
    let answer = read(&s.client, latest("/parent")).await;
    let node = answer.node.unwrap();
    assert!(node.exists);
    assert_eq!(shown(node.value.as_ref()), json!({"limit": 5}));
    let children: Vec<_> =
        node.children.iter().map(|(name, child)| (name.as_str(), shown(child.value.as_ref()))).collect();
    assert_eq!(children, [("a", json!({"text": "text"})), ("b", Json::Null)]);
    let (truth, stat) = (s.zk.get("/parent/a").await.unwrap().stat, node.children["a"].stat.unwrap());
    assert_eq!((stat.czxid, stat.mzxid, stat.pzxid), (truth.czxid, truth.mzxid, truth.pzxid));
    assert_eq!((stat.version, stat.num_children, stat.data_length), (0, 1, 4));
    assert_eq!(node.children["b"].stat.unwrap().ephemeral_owner, s.zk.session());
    let parent = s.zk.get("/parent").await.unwrap().stat;
    assert_eq!(answer.revision, parent.pzxid, "the largest mzxid or pzxid of itself and its children");
}

#[tokio::test]
async fn bytes_are_shown_as_what_they_are() {
    let s = ARM.setting("get").await;
    let nested = |depth: usize| format!("{}{}", r#"{"a":"#.repeat(depth - 1), "{}") + &"}".repeat(depth - 1);
    let raw = |text: &str| json!({ "raw": text.as_bytes().to_vec() });
    let cases: Vec<(String, Json)> = vec![
        (
            r#"{"port":10733,"half":0.5,"none":null,"list":[1,"x",{}]}"#.into(),
            json!({"port": 10733, "half": 0.5, "none": null, "list": [1, "x", {}]}),
        ),
        (r#" {"spaces": "around"} "#.into(), json!({"spaces": "around"})),
        (
            r#"{"pid":22075,"created":"2026-11-22 09:38:38"}"#.into(),
            json!({"pid": 22075, "created": "2026-11-22 09:38:38"}),
        ),
        (r#"[1,2]"#.into(), json!({"text": "[1,2]"})),
        (r#""a string""#.into(), json!({"text": r#""a string""#})),
        ("{not json".into(), json!({"text": "{not json"})),
        ("größe".into(), json!({"text": "größe"})),
        (" ".into(), json!({"text": " "})),
        (r#"{"n":9007199254740991}"#.into(), json!({"n": 9007199254740991_i64})),
        (r#"{"n":9007199254740993}"#.into(), raw(r#"{"n":9007199254740993}"#)),
        (r#"{"n":1e400}"#.into(), raw(r#"{"n":1e400}"#)),
        (r#"{"n":0.1}"#.into(), json!({"n": 0.1})),
        (r#"{"s":"\ud800"}"#.into(), raw(r#"{"s":"\ud800"}"#)),
        (r#"{"s":"\ud83d\ude00"}"#.into(), json!({"s": "😀"})),
        (nested(17), raw(&nested(17))),
    ];
    for (number, (bytes, _)) in cases.iter().enumerate() {
        s.zk.create(&format!("/bytes/{number:02}"), bytes.as_bytes()).await;
    }
    s.zk.create("/bytes/no-utf8", b"\xff{}").await;
    s.zk.create("/bytes/deepest", nested(16).as_bytes()).await;
    let node = get(&s.client, "/bytes").await;
    for (number, (bytes, expected)) in cases.iter().enumerate() {
        assert_eq!(&shown(node.children[&format!("{number:02}")].value.as_ref()), expected, "{bytes}");
    }
    assert_eq!(shown(node.children["no-utf8"].value.as_ref()), json!({"raw": [255, 123, 125]}));
    assert!(shown(node.children["deepest"].value.as_ref()).get("a").is_some());
}

#[tokio::test]
async fn latest_sees_every_write_that_was_acknowledged_before() {
    let s = ARM.setting("get").await;
    let other_server = s.another_server().await;
    let other = other_server.client().await;
    // The view exists from the first read on; if it lagged, it would show here.
    for number in 0..50 {
        put(&s.client, "/latest", text(&number.to_string())).await.unwrap();
        let node = get(&other, "/latest").await;
        assert_eq!(shown(node.value.as_ref()), json!({"text": number.to_string()}));
        s.zk.create(&format!("/latest/{number}"), b"").await;
        assert_eq!(get(&s.client, "/latest").await.children.len(), number + 1);
    }
}

#[tokio::test]
async fn cached_reads_never_show_what_is_older_than_shown_before() {
    let s = ARM.setting("get").await;
    put(&s.client, "/cached", text("0")).await.unwrap();
    let writes = async {
        for number in 1..=100 {
            s.zk.set("/cached", number.to_string().as_bytes()).await;
        }
    };
    let reads = async {
        let (mut value, mut revision) = (0, 0);
        while value < 100 {
            // LATEST moves the view: later reads from the cache are no older.
            let request = if value % 3 == 0 { latest("/cached") } else { cached("/cached") };
            let answer = read(&s.client, request).await;
            let shown = shown(answer.node.unwrap().value.as_ref());
            let now: i32 = shown["text"].as_str().unwrap().parse().unwrap();
            assert!(
                now >= value && answer.revision >= revision,
                "{now} at {} after {value} at {revision}",
                answer.revision
            );
            (value, revision) = (now, answer.revision);
        }
    };
    soon("all writes are seen", async { tokio::join!(writes, reads) }).await;
}

#[tokio::test]
async fn wait_holds_the_answer_until_there_is_a_child() {
    let s = ARM.setting("get").await;
    let waiting = GetRequest { wait: Some(span(Duration::from_secs(60))), ..cached("/waited/for") };
    let mut client = s.client.clone();
    let answer = tokio::spawn(async move { client.get(waiting).await });
    // The parent alone is no child.
    put(&s.client, "/waited/for", text("x")).await.unwrap();
    get(&s.client, "/waited/for").await;
    assert!(!answer.is_finished());
    let mut stream = Registration::open(&s.client).await;
    stream.set("/waited/for/it", text("x")).await;
    let answer = soon("the answer", answer).await.unwrap().unwrap().into_inner();
    assert!(answer.node.unwrap().children.contains_key("it"));
    // When there is a child, nothing is waited for.
    let waiting = GetRequest { wait: Some(span(Duration::from_secs(60))), ..cached("/waited/for") };
    assert_eq!(read(&s.client, waiting).await.node.unwrap().children.len(), 1);
}

#[tokio::test]
async fn a_wait_that_is_over_is_answered_with_what_there_is() {
    let s = ARM.setting("get").await;
    s.zk.create("/there", b"x").await;
    for (path, exists) in [("/there", true), ("/absent", false)] {
        let request = GetRequest { wait: Some(span(Duration::from_millis(200))), ..cached(path) };
        let node = read(&s.client, request).await.node.unwrap();
        assert_eq!((node.exists, node.children.len()), (exists, 0));
    }
}

#[tokio::test]
async fn recursive_keys_are_relative_paths() {
    let s = ARM.setting("get").await;
    for path in ["/tree/a/b/c", "/tree/a/d", "/tree/e"] {
        s.zk.create(path, path.as_bytes()).await;
    }
    let node = read(&s.client, GetRequest { recursive: true, ..latest("/tree") }).await.node.unwrap();
    let values: BTreeMap<_, _> =
        node.children.iter().map(|(name, child)| (name.as_str(), shown(child.value.as_ref()))).collect();
    assert_eq!(values.keys().copied().collect::<Vec<_>>(), ["a", "a/b", "a/b/c", "a/d", "e"]);
    assert_eq!(values["a/b/c"], json!({"text": "/tree/a/b/c"}));
    assert_eq!(values["a/b"], Json::Null);
    let root = read(&s.client, GetRequest { recursive: true, ..latest("/") }).await.node.unwrap();
    assert!(
        root.children.contains_key("tree/a/b/c") && root.children.keys().all(|name| !name.starts_with(".rollcall"))
    );
}

#[tokio::test]
async fn our_own_subtree_is_hidden() {
    let s = ARM.setting("get").await;
    let mut stream = Registration::open(&s.client).await;
    stream.set("/services/a", text("x")).await;
    assert!(s.zk.exists("/.rollcall").await, "there is something to hide");
    let node = get(&s.client, "/").await;
    assert_eq!(node.children.keys().collect::<Vec<_>>(), ["services"]);
}

/// Reads all pages. Checks that they have one revision, and that no name comes twice.
async fn pages(client: &Client, request: GetRequest) -> (usize, BTreeMap<String, v1::Child>, i64) {
    let (mut count, mut children, mut revision, mut token) = (0, BTreeMap::new(), None, String::new());
    loop {
        let answer = read(client, GetRequest { page_token: token, ..request.clone() }).await;
        count += 1;
        assert_eq!(*revision.get_or_insert(answer.revision), answer.revision, "pages are pinned to one revision");
        let page = answer.node.unwrap().children;
        let last = children.keys().next_back().cloned();
        assert!(last.is_none() || page.keys().next().is_none_or(|first| Some(first) > last.as_ref()), "by name");
        children.extend(page);
        token = answer.next_page_token;
        if token.is_empty() {
            return (count, children, revision.unwrap());
        }
    }
}

#[tokio::test]
async fn pages_go_by_name() {
    let s = ARM.setting("get").await;
    for number in 0..10 {
        s.zk.create(&format!("/paged/{number}"), b"x").await;
    }
    for (size, expected) in [(3, 4), (5, 2), (10, 1), (100, 1), (0, 1)] {
        let (count, children, _) = pages(&s.client, GetRequest { page_size: size, ..latest("/paged") }).await;
        assert_eq!((count, children.len()), (expected, 10), "page_size {size}");
    }
}

#[tokio::test]
async fn a_page_shows_the_revision_of_the_first_or_is_gone() {
    let s = ARM.setting("get").await;
    for number in 0..10 {
        s.zk.create(&format!("/pinned/{number}"), b"x").await;
    }
    let request = GetRequest { page_size: 5, ..latest("/pinned") };
    let first = read(&s.client, request.clone()).await;
    s.zk.create("/pinned/55", b"late").await;
    s.zk.delete("/pinned/7").await;
    assert_eq!(get(&s.client, "/pinned").await.children.len(), 10);
    let second = GetRequest { page_token: first.next_page_token.clone(), ..request };
    match soon("the second page", s.client.clone().get(second)).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            assert_eq!(answer.revision, first.revision);
            assert_eq!(answer.node.unwrap().children.keys().collect::<Vec<_>>(), ["5", "6", "7", "8", "9"]);
        }
        Err(status) => {
            rollcall_tests::client::refused(Err::<(), _>(status), tonic::Code::Aborted, "PAGE_EXPIRED");
        }
    }
}

#[tokio::test]
async fn what_does_not_fit_a_message_comes_in_pages_unasked() {
    let s = ARM.setting("get").await;
    let value = vec![b'x'; 250 * 1024];
    for number in 0..20 {
        s.zk.create(&format!("/large/{number:02}"), &value).await;
    }
    let (count, children, _) = pages(&s.client, latest("/large")).await;
    assert!(count >= 3, "5 MB in messages of at most 2 MiB took {count}");
    assert_eq!(children.len(), 20);
}

#[tokio::test]
async fn every_replica_reads_the_same_revision() {
    let s = ARM.setting("get").await;
    let other = s.another_server().await;
    let other_client = other.client().await;
    let mut stream = Registration::open(&s.client).await;
    stream.set("/same/one", data(json!({"a": 1}))).await;
    let ours = read(&s.client, latest("/same")).await;
    let theirs = read(&other_client, latest("/same")).await;
    assert_eq!((ours.revision, &ours.node), (theirs.revision, &theirs.node));
    // Cached reads follow without a LATEST read.
    stream.set("/same/two", text("x")).await;
    eventually("the other replica's cache follows", rollcall_tests::wait::SOON, async || {
        let request = GetRequest { consistency: Consistency::Cached.into(), ..cached("/same") };
        let node = read(&other_client, request).await.node.unwrap();
        if node.children.len() == 2 { Ok(()) } else { Err(format!("{node:?}")) }
    })
    .await;
}
