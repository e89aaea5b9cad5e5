//! Get.

use std::sync::Arc;

use rollcall_proto::server::v1;
use tokio::time::Instant;
use tonic::Request;

use super::frames::{Frame, frame};
use super::{MAX_MESSAGE_BYTES, Service, convert};
use crate::error::Error;
use crate::types::Revision;
use crate::views::{Form, Made, Reader, Reading, State};

/// What of a response is kept free for everything but the children, in bytes.
const MARGIN: usize = 4 * 1024;
/// A wait that is longer than this is as good as for ever, and clocks can't go that far.
const LONGEST_WAIT: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// Where a page begins: after this name, in the state of this revision.
struct PageToken {
    revision: Revision,
    after: Arc<str>,
}

impl Service {
    pub(super) async fn do_get(&self, request: Request<v1::GetRequest>) -> Result<Frame, Error> {
        let _place = request.get_ref().wait.map(|_| self.admit()).transpose()?;
        let request = request.into_inner();
        let path = convert::path(&request.path)?;
        let page_size = usize::try_from(request.page_size)
            .map_err(|_| Error::Protocol { field: "page_size", cause: "it can't be negative".to_owned() })?;
        let token = PageToken::parse(&request.page_token)?;
        let reader = self.views.open(&path, request.recursive)?;
        let reading = match &token {
            Some(token) => reader.pinned(token.revision).await?,
            None if request.wait.is_none() => read(&reader, &request).await?,
            // A call that waits would hold up the way down, and there is no telling it to move but its end.
            None => tokio::select! {
                reading = read(&reader, &request) => reading?,
                () = self.drain.begun() => return Err(Error::Draining),
            },
        };
        let after = token.map(|token| token.after);
        let make = || page(&reading.state, after.as_ref(), page_size);
        let page = if page_size == 0 { reading.state.part(Form::Page, after.as_ref(), make) } else { make() };
        if page.next.is_some() {
            reader.pin(&reading.state);
        }
        let as_of = reading.as_of.map(convert::timestamp_to_proto);
        Ok(Frame::with(&page.bytes, &v1::GetResponse { stale: reading.is_stale, as_of, ..Default::default() }))
    }
}

async fn read(reader: &Reader, request: &v1::GetRequest) -> Result<Reading, Error> {
    let wait = convert::duration("wait", request.wait)?;
    let deadline = wait.map(|wait| Instant::now() + wait.min(LONGEST_WAIT));
    let first = match request.consistency() {
        v1::Consistency::Latest => reader.latest().await?,
        v1::Consistency::Unspecified | v1::Consistency::Cached => reader.cached().await?,
    };
    match deadline {
        Some(deadline) if first.state.children.is_empty() => reader.with_children(deadline).await,
        _ => Ok(first),
    }
}

/// What of an answer is the same for all.
fn page(state: &State, after: Option<&Arc<str>>, page_size: usize) -> Made {
    let mut node = convert::node_to_proto(&state.path, state.node.as_deref(), after.is_none());
    let most = if page_size == 0 { usize::MAX } else { page_size };
    let room = MAX_MESSAGE_BYTES - MARGIN;
    let mut rest = state.children.after(after.map_or("", |after| after)).peekable();
    let last = convert::fill_children(&mut node, &mut rest, most, room, after.is_some());
    // Where the node alone fills the first page, the next begins with the first child: after the empty name.
    let next = rest.next().is_some().then(|| last.unwrap_or_default());
    let token = next.clone().map(|after| PageToken { revision: state.revision, after }.to_string());
    let response = v1::GetResponse {
        node: Some(node),
        revision: state.revision.0,
        next_page_token: token.unwrap_or_default(),
        ..Default::default()
    };
    Made { bytes: frame(&response), next }
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
        let cause = || "it is none that a page came with".to_owned();
        parsed.map(Some).ok_or_else(|| Error::Protocol { field: "page_token", cause: cause() })
    }
}

impl std::fmt::Display for PageToken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:x}.{}", self.revision.0, self.after)
    }
}
