//! Register: one stream, its answers, its lifetime. Takeovers are in `takeover.rs`.

use std::collections::BTreeMap;

use rollcall_proto::v1;
use rollcall_proto::v1::register_request::Request;
use rollcall_proto::v1::register_response::Response;
use rollcall_tests::client::{Registration, data, plain, raw, refused, set, shown, text, unset, violated_field};
use rollcall_tests::wait::{SOON, check, eventually, soon};
use serde_json::json;
use tonic::{Code, Request as Call};

use super::ARM;

#[tokio::test]
async fn opened_comes_first_with_open_and_without() {
    let s = ARM.setting("register").await;
    let mut without = Registration::open_with(&s.client, [set("/without", text("x"))]).await.unwrap();
    without.registered().await;
    let open = v1::OpenSession { client_name: "tests".into(), pid: 7, ..Default::default() };
    let with = Registration::open_with(&s.client, [Request::Open(open)]).await.unwrap();
    assert!(!without.opened.session_id.is_empty());
    assert_ne!(without.opened.session_id, with.opened.session_id);
}

#[tokio::test]
async fn a_registration_is_an_ephemeral_node_with_durable_parents() {
    let s = ARM.setting("register").await;
    let open = v1::OpenSession { pid: 4711, ..Default::default() };
    let mut stream = Registration::open_with(&s.client, [Request::Open(open)]).await.unwrap();
    let answer = stream.set("/services/ssh/server1:22", data(json!({"foo": "bar", "port": 10733}))).await;
    let node = s.zk.get("/services/ssh/server1:22").await.unwrap();
    assert!(node.is_ephemeral());
    assert_eq!((answer.generation, answer.restored, answer.adopted), (node.stat.czxid, false, false));
    assert_eq!(answer.stat.unwrap().ephemeral_owner, node.stat.ephemeral_owner);
    let created = node.json()["created"].as_str().unwrap().to_owned();
    assert_eq!(node.text(), format!(r#"{{"pid":4711,"created":"{created}","foo":"bar","port":10733}}"#));
    for parent in ["/services", "/services/ssh"] {
        let parent = s.zk.get(parent).await.unwrap();
        assert!(!parent.is_ephemeral() && parent.data.is_empty());
    }
    drop(stream);
    s.zk.wait_gone("/services/ssh/server1:22").await;
    assert!(s.zk.exists("/services/ssh").await, "parents stay");
}

#[tokio::test]
async fn a_set_without_a_value_is_an_empty_object() {
    let s = ARM.setting("register").await;
    let mut stream = Registration::open(&s.client).await;
    stream.send(Request::Set(v1::SetRegistration { path: "/empty".into(), ..Default::default() })).await;
    stream.registered().await;
    let json = s.zk.get("/empty").await.unwrap().json();
    assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["created"]);
}

#[tokio::test]
async fn text_and_bytes_are_registered_as_they_are() {
    let s = ARM.setting("register").await;
    let mut stream = Registration::open(&s.client).await;
    stream.set("/text", text("größe")).await;
    stream.set("/raw", raw(b"\xff\x00\xfe")).await;
    assert_eq!(s.zk.get("/text").await.unwrap().text(), "größe");
    assert_eq!(s.zk.get("/raw").await.unwrap().data, b"\xff\x00\xfe");
}

#[tokio::test]
async fn each_set_of_one_path_is_answered_once_and_in_order() {
    let s = ARM.setting("register").await;
    let mut stream = Registration::open(&s.client).await;
    for number in 0..50 {
        stream.send(set("/one", text(&number.to_string()))).await;
        if number % 10 == 0 {
            stream.send(set("relative", text("x"))).await;
        }
    }
    stream.send(unset("/one")).await;
    let (mut registered, mut rejected, mut version) = (0, 0, -1);
    loop {
        match stream.answer().await {
            Response::Registered(answer) => {
                registered += 1;
                let stat = answer.stat.unwrap();
                assert!(stat.version >= version, "answers come in order");
                version = stat.version;
            }
            Response::Rejected(_) => rejected += 1,
            Response::Unregistered(answer) => break assert_eq!(answer.path, "/one"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((registered, rejected), (50, 5));
    assert!(!s.zk.exists("/one").await);
}

#[tokio::test]
async fn a_second_set_of_a_path_changes_its_data_and_not_its_generation() {
    let s = ARM.setting("register").await;
    let mut stream = Registration::open(&s.client).await;
    let first = stream.set("/path", data(json!({"a": 1}))).await;
    let second = stream.set("/path", data(json!({"a": 2}))).await;
    assert_eq!(first.generation, second.generation);
    let node = s.zk.get("/path").await.unwrap();
    assert_eq!((plain(node.json()), node.stat.version), (json!({"a": 2}), 1));
}

#[tokio::test]
async fn unset_of_what_is_not_held_answers_unregistered() {
    let s = ARM.setting("register").await;
    s.zk.create("/durable", b"x").await;
    let mut stream = Registration::open(&s.client).await;
    for path in ["/never", "/durable"] {
        stream.send(unset(path)).await;
        assert_eq!(stream.unregistered().await, path);
    }
    assert!(s.zk.exists("/durable").await);
}

#[tokio::test]
async fn close_answers_unregistered_for_each_and_then_ok() {
    let s = ARM.setting("register").await;
    let mut stream = Registration::open(&s.client).await;
    let paths = ["/a", "/b", "/c/d"];
    for path in paths {
        stream.set(path, text("x")).await;
    }
    stream.send(Request::Close(v1::CloseSession {})).await;
    let mut gone = Vec::new();
    while let Some(answer) = stream.next().await.unwrap() {
        let Response::Unregistered(answer) = answer else { panic!("{answer:?}") };
        gone.push(answer.path);
    }
    gone.sort();
    assert_eq!(gone, paths);
    for path in paths {
        assert!(!s.zk.exists(path).await, "unregistered is said when it is true");
    }
}

#[tokio::test]
async fn a_registration_ends_with_its_stream() {
    let s = ARM.setting("register").await;
    let mut cancelled = Registration::open(&s.client).await;
    let mut other = Registration::open(&s.client).await;
    cancelled.set("/cancelled", text("x")).await;
    other.set("/other", text("x")).await;
    drop(cancelled);
    s.zk.wait_gone("/cancelled").await;
    assert!(s.zk.exists("/other").await, "streams of one connection do not share their fate");
}

#[tokio::test]
async fn a_registration_ends_with_its_connection() {
    let s = ARM.setting("register").await;
    let client = s.server.client().await;
    let mut stream = Registration::open(&client).await;
    stream.set("/connection", text("x")).await;
    drop((client, stream));
    s.zk.wait_gone("/connection").await;
}

#[tokio::test]
async fn half_closing_is_no_goodbye() {
    let s = ARM.setting("register").await;
    let mut stream = Registration::open_with(&s.client, [set("/half", text("x"))]).await.unwrap();
    stream.half_close();
    stream.registered().await;
    let mut other = Registration::open(&s.client).await;
    // By now the server has seen the half-close, since it has handled later requests on the same code path.
    other.set("/later", text("x")).await;
    other.send(unset("/later")).await;
    other.unregistered().await;
    assert!(s.zk.exists("/half").await);
    drop(stream);
    s.zk.wait_gone("/half").await;
}

#[tokio::test]
async fn a_deadline_counts_as_a_broken_stream() {
    let s = ARM.setting("register").await;
    let request = v1::RegisterRequest { request: Some(set("/deadline", text("x"))) };
    // The request side stays open, so that only the deadline ends the call.
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    requests.send(request).await.unwrap();
    let mut call = Call::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    call.set_timeout(std::time::Duration::from_secs(3));
    let mut stream = s.client.clone().register(call).await.unwrap().into_inner();
    s.zk.wait_for("/deadline", "registered", |_| true).await;
    let status = loop {
        match soon("the deadline", stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a deadline is no OK"),
            Err(status) => break status,
        }
    };
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    s.zk.wait_gone("/deadline").await;
}

#[tokio::test]
async fn faults_of_one_path_are_rejected_and_the_stream_goes_on() {
    let s = ARM.setting("register").await;
    s.zk.create("/durable", b"x").await;
    let big = "x".repeat(256 * 1024 + 1);
    let mut stream = Registration::open(&s.client).await;
    for (path, value, code, reason) in [
        ("relative", text("x"), Code::InvalidArgument, "INVALID_PATH"),
        ("", text("x"), Code::InvalidArgument, "INVALID_PATH"),
        ("/", text("x"), Code::InvalidArgument, "INVALID_PATH"),
        ("/.rollcall/fences/x", text("x"), Code::InvalidArgument, "INVALID_PATH"),
        ("/big", text(&big), Code::InvalidArgument, "VALUE_TOO_LARGE"),
        ("/durable", text("x"), Code::FailedPrecondition, "NOT_EPHEMERAL"),
    ] {
        stream.send(set(path, value)).await;
        let rejected = stream.rejected().await;
        assert_eq!((rejected.path.as_str(), Code::from(rejected.code)), (path, code), "{rejected:?}");
        assert_eq!(rejected.reason, reason, "{rejected:?}");
        assert!(!rejected.message.is_empty() && rejected.message.len() <= 512);
    }
    stream.set("/good", text("x")).await;
    assert_eq!(s.zk.get("/durable").await.unwrap().text(), "x");
}

#[tokio::test]
async fn faults_of_the_protocol_end_the_stream() {
    let s = ARM.setting("register").await;
    let open = || Request::Open(v1::OpenSession::default());
    let after = |first: Request, second: Option<Request>| {
        let client = s.client.clone();
        async move {
            let mut stream = Registration::open_with(&client, [first]).await.unwrap();
            stream.send_message(v1::RegisterRequest { request: second }).await;
            loop {
                match stream.next().await {
                    Ok(Some(_)) => {}
                    ended => break ended,
                }
            }
        }
    };
    refused(after(set("/p", text("x")), Some(open())).await, Code::InvalidArgument, "PROTOCOL");
    refused(after(open(), Some(open())).await, Code::InvalidArgument, "PROTOCOL");
    let empty = refused(after(open(), None).await, Code::InvalidArgument, "PROTOCOL");
    assert!(!violated_field(&empty).is_empty());
    s.zk.wait_gone("/p").await;
}

#[tokio::test]
async fn one_stream_holds_ten_thousand_registrations() {
    const COUNT: usize = 10_000;
    let s = ARM.setting("register").await;
    let mut stream = Registration::open(&s.client).await;
    let mut generations = BTreeMap::new();
    // In batches: the answers of one are read while the next is sent.
    for batch in 0..COUNT / 500 {
        for number in 0..500 {
            stream.send(set(&format!("/many/{}", batch * 500 + number), text("x"))).await;
        }
        for _ in 0..500 {
            let answer = stream.registered().await;
            assert_eq!(generations.insert(answer.path, answer.generation), None, "one answer each");
        }
    }
    assert_eq!(generations.len(), COUNT);
    assert_eq!(s.zk.children("/many").await.unwrap().len(), COUNT);
    drop(stream);
    eventually("all are gone", 3 * SOON, async || {
        let left = s.zk.children("/many").await.unwrap().len();
        check(left == 0, || format!("{left} left"))
    })
    .await;
}

#[tokio::test]
async fn answers_that_nobody_reads_do_not_stop_the_server_from_reading() {
    let s = ARM.setting("register").await;
    let mut stream = Registration::open(&s.client).await;
    // Some megabytes of answers, far more than a connection holds in flight.
    let pad = "p".repeat(200);
    for number in 0..5_000 {
        stream.send(set(&format!("/unread/{pad}/{number}"), text("x"))).await;
    }
    eventually("all are registered", 3 * SOON, async || {
        let count = s.zk.children(&format!("/unread/{pad}")).await.map_or(0, |names| names.len());
        check(count == 5_000, || format!("{count} are registered"))
    })
    .await;
    let mut answered = 0;
    while answered < 5_000 {
        stream.registered().await;
        answered += 1;
    }
}

#[tokio::test]
async fn a_registration_that_somebody_deletes_is_put_back_with_the_same_bytes() {
    let s = ARM.setting("register").await;
    let mut stream = Registration::open(&s.client).await;
    let first = stream.set("/back", data(json!({"a": 1}))).await;
    let before = s.zk.get("/back").await.unwrap();
    for _ in 0..2 {
        s.zk.delete("/back").await;
        let back = stream.registered().await;
        assert!(back.restored && back.generation > first.generation, "{back:?}");
        let node = s.zk.get("/back").await.unwrap();
        assert_eq!((node.data, node.stat.czxid), (before.data.clone(), back.generation));
    }
    drop(stream);
    s.zk.wait_gone("/back").await;
}

#[tokio::test]
async fn overwritten_data_are_told_at_once_and_put_right_soon() {
    let s = ARM.setting("register").await;
    let mut stream = Registration::open(&s.client).await;
    let first = stream.set("/over", data(json!({"a": 1}))).await;
    let before = s.zk.get("/over").await.unwrap();
    for version in [1, 3] {
        s.zk.set("/over", br#"{"theirs":true}"#).await;
        let Response::Overwritten(told) = stream.answer().await else { panic!("overwritten comes next") };
        assert_eq!((told.path.as_str(), shown(told.value.as_ref())), ("/over", json!({"theirs": true})));
        assert_eq!(told.stat.unwrap().version, version);
        let right = stream.registered().await;
        assert!(right.restored && right.generation == first.generation, "{right:?}");
        let node = s.zk.get("/over").await.unwrap();
        assert_eq!((node.data, node.stat.version), (before.data.clone(), version + 1));
    }
    // The holder's own set is written at once, and then there is nothing left to restore.
    s.zk.set("/over", br#"{"theirs":true}"#).await;
    let Response::Overwritten(_) = stream.answer().await else { panic!("overwritten comes next") };
    let again = stream.set("/over", data(json!({"a": 1}))).await;
    assert!(!again.restored && again.generation == first.generation, "{again:?}");
    let node = s.zk.get("/over").await.unwrap();
    assert_eq!((node.data, node.stat.version), (before.data, 6));
}

/// Like nd_service_registry, whose process writes its own pid and time whenever it sees others.
#[tokio::test]
async fn two_programs_that_disagree_write_a_handful_of_times_and_the_one_that_lives_has_the_last_word() {
    let s = ARM.setting("register").await;
    let mut stream = Registration::open(&s.client).await;
    stream.set("/fight", data(json!({"a": 1}))).await;
    let ours = s.zk.get("/fight").await.unwrap().data;
    let theirs = br#"{"pid":22075,"a":1}"#;
    let mut written = 0;
    let fight = async {
        loop {
            if s.zk.get("/fight").await.unwrap().data != theirs {
                s.zk.set("/fight", theirs).await;
                written += 1;
            }
        }
    };
    let told = async {
        // After 1 s, 2 s and 4 s.
        let mut restored = 0;
        while restored < 3 {
            restored += i32::from(matches!(stream.answer().await, Response::Registered(_)));
        }
    };
    tokio::select! {
        never = fight => never,
        () = told => {}
    }
    assert!((3..=4).contains(&written), "{written}");
    s.zk.wait_for("/fight", "the truth again", |node| node.data == ours).await;
}

#[tokio::test]
async fn a_registration_below_a_registration_is_rejected() {
    let s = ARM.setting("register").await;
    let mut stream = Registration::open(&s.client).await;
    stream.set("/parent", text("x")).await;
    stream.send(set("/parent/child", text("x"))).await;
    let rejected = stream.rejected().await;
    assert_eq!(Code::from(rejected.code), Code::FailedPrecondition, "{rejected:?}");
    stream.set("/beside", text("x")).await;
}
