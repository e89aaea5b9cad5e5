//! Get.

use std::sync::Arc;

use rollcall_proto::server::v1;
use tokio::time::Instant;
use tonic::Request;

use super::acknowledged::Acknowledged;
use super::admission::{Admission, CallKind, account, acknowledged};
use super::frames::{Frame, frame};
use super::message::MAX_MESSAGE_BYTES;
use super::times::LONGEST_WAIT;
use super::{Service, convert, page};
use crate::error::Error;
use crate::types::{Revision, Zxid};
use crate::views::{Begin, MadePart, PartForm, PartKey, Reached, Reader, State, StateReading};

/// Bytes of a response that are kept free for everything but the children.
const GET_MARGIN: usize = 4 * 1024;

/// Where a page begins: after a name, in the state of a revision.
struct PageToken {
    revision: Revision,
    after: Arc<str>,
}

impl Service {
    pub(super) async fn do_get(&self, request: Request<v1::GetRequest>) -> Result<Frame, Error> {
        if request.get_ref().wait.is_some() && !self.drain.is_serving() {
            return Err(Error::Draining);
        }
        let (account, acknowledged) = (account(&request), acknowledged(&request));
        let request = request.into_inner();
        let path = convert::path(&request.path)?;
        let page_size = usize::try_from(request.page_size)
            .map_err(|_| Error::Protocol { field: "page_size", cause: "it can't be negative".to_owned() })?;
        let min_revision = convert::at_least(request.min_revision)?;
        let known = KnownTransactions { acknowledged, min_revision, admission: self.admission.clone() };
        let token = PageToken::parse(&request.page_token)?;
        let reader = self.views.open(&path, request.recursive, &account)?;
        let (reading, reset) = match &token {
            Some(token) => (reader.pinned(token.revision).await?, false),
            None if request.wait.is_none() => read(&reader, &request, &known).await?,
            // A call that waits would delay the drain, and only its end can tell its client to move.
            None => tokio::select! {
                reading = read(&reader, &request, &known) => reading?,
                () = self.drain.begun() => return Err(Error::Draining),
            },
        };
        let begin = token.map_or(Begin::First, |token| Begin::After(token.after));
        // A page with room for all children is the same for every caller.
        let size = if page_size >= reading.state.children.len() { 0 } else { page_size };
        let key = PartKey { form: PartForm::Page, begin, size };
        let page = self.views.state_part(&account, &reading.state, key, page).await?;
        if page.next.is_some() {
            reader.pin(&reading.state);
        }
        let as_of = reading.as_of.map(convert::timestamp_to_proto);
        Ok(Frame::with(&page.bytes, &v1::GetResponse { stale: reading.is_stale, as_of, reset, ..Default::default() }))
    }
}

/// The transactions that the caller knows of.
struct KnownTransactions {
    /// From this replica's answers.
    acknowledged: Acknowledged,
    /// From the request.
    min_revision: Zxid,
    /// Counts the call while it waits for them, or for a child.
    admission: Admission,
}

/// The reading, and whether ZooKeeper's history ends before a transaction that the caller knows of.
async fn read(
    reader: &Reader,
    request: &v1::GetRequest,
    known: &KnownTransactions,
) -> Result<(StateReading, bool), Error> {
    let wait = convert::duration("wait", request.wait)?;
    let deadline = wait.map(|wait| Instant::now() + wait.min(LONGEST_WAIT));
    let mut reading = match request.consistency() {
        v1::Consistency::Latest => reader.latest().await?,
        v1::Consistency::Unspecified | v1::Consistency::Cached => reader.cached().await?,
    };
    let acknowledged = known.acknowledged.latest();
    let at_least = acknowledged.max(known.min_revision);
    let mut reached = Reached::Yes;
    if at_least.0 > 0 {
        drop(reading);
        let _place = (!reader.has_reached(at_least)).then(|| known.admission.admit(CallKind::Get));
        reached = reader.reach(at_least, reader.patience_ends()).await;
        if let Reached::Never(end) = reached {
            known.acknowledged.forget(acknowledged, end);
        }
        // The state that was read before this check may be older.
        reading = reader.cached().await?;
    }
    if let Some(deadline) = deadline.filter(|_| reading.state.children.is_empty()) {
        let _place = known.admission.admit(CallKind::Get);
        reading = reader.with_children(deadline).await?;
    }
    if reached == Reached::Yes {
        return Ok((reading, false));
    }
    if reader.has_reached(at_least) {
        return Ok((reader.cached().await?, false));
    }
    let as_of = reading.as_of.or_else(|| reader.last_heard());
    Ok((StateReading { is_stale: true, as_of, ..reading }, matches!(reached, Reached::Never(_))))
}

/// The part of an answer that is the same for every caller.
fn page(state: &State, key: &PartKey) -> MadePart {
    let most = if key.size == 0 { usize::MAX } else { key.size };
    let (node, next) = page::node_part(state, &key.begin, most, MAX_MESSAGE_BYTES - GET_MARGIN);
    let token = next.clone().map(|after| PageToken { revision: state.revision, after }.to_string());
    let response = v1::GetResponse {
        node: Some(node),
        revision: state.revision.0,
        next_page_token: token.unwrap_or_default(),
        ..Default::default()
    };
    MadePart { bytes: frame(&response), next: next.map(Begin::After) }
}

impl PageToken {
    fn parse(text: &str) -> Result<Option<Self>, Error> {
        if text.is_empty() {
            return Ok(None);
        }
        let parts = text.split_once('.');
        let parsed = parts.and_then(|(revision, after)| {
            let revision = Revision(i64::from_str_radix(revision, 16).ok()?);
            Some(Self { revision, after: after.into() })
        });
        let cause = || "it must be the token that came with the page before, or empty".to_owned();
        parsed.map(Some).ok_or_else(|| Error::Protocol { field: "page_token", cause: cause() })
    }
}

impl std::fmt::Display for PageToken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:x}.{}", self.revision.0, self.after)
    }
}
