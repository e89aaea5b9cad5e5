//! The reading side of a session's connection: answers, events, and the silence of the server.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rollcall_wire::{Decoder, ErrorCode, Malformed, OpCode, ReplyHeader, Response, WatcherEvent, xid};
use tokio::io::AsyncRead;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::exchange::{Answer, Identity, Pending};
use crate::clock;
use crate::compute;
use crate::mutex::lock;
use crate::types::Zxid;
use crate::zk::config::Config;
use crate::zk::connection::{FrameReader, ReplyFrame};
use crate::zk::error::Error;
use crate::zk::watches::{Event, Watches};

/// Length of a step in which silence is counted. With longer steps a silent server is noticed later; with shorter ones
/// sessions that have nothing to do wake up more often.
const STEP: Duration = Duration::from_millis(250);
/// Minimum number of steps in a session time-out; applies if that is short.
const STEPS: u32 = 24;
/// Maximum number of bytes of an answer that is decoded at once. A longer one is decoded on a blocking thread: an
/// answer of 64 MiB may name millions of children.
const DECODED_AT_ONCE: usize = 128 * 1024;

/// The state that the reading side works with.
pub(super) struct ReadingSide<'a> {
    pub(super) pending: &'a Mutex<VecDeque<Pending>>,
    pub(super) watches: &'a Watches,
    pub(super) identity: &'a Mutex<Identity>,
    pub(super) evidence: &'a watch::Sender<Instant>,
    pub(super) config: &'a Arc<Config>,
}

/// Time for which the server has been silent. It is counted in steps, each of which ends when a look finds the socket
/// empty. A process that was stopped, or had no processor, adds one step however long that took; time in which a long
/// answer is decoded, and nothing is read, adds none.
#[derive(Debug, Default)]
struct Silence {
    /// Number of bytes received by the end of the last step.
    received: u64,
    /// Time in which nothing was received.
    quiet: Duration,
    /// Time in which nothing was received while a request waited.
    ignored: Duration,
    /// Time in which no request was answered while one waited. A long answer that is being received may take its time.
    unanswered: Duration,
}

impl Silence {
    /// A step has ended. `waited`: the time for which the oldest request has waited, if there is one.
    fn step(&mut self, step: Duration, received: u64, is_amid_frame: bool, waited: Option<Duration>) {
        let is_quiet = received == self.received;
        self.received = received;
        self.quiet = if is_quiet { self.quiet + step } else { Duration::ZERO };
        let Some(waited) = waited.map(|waited| waited.min(step)) else {
            (self.ignored, self.unanswered) = (Duration::ZERO, Duration::ZERO);
            return;
        };
        self.ignored = if is_quiet { self.ignored + waited } else { Duration::ZERO };
        if !is_amid_frame {
            self.unanswered += waited;
        }
    }

    fn answered(&mut self) {
        self.unanswered = Duration::ZERO;
    }

    /// The reason why the server counts as gone, if it does: it leaves requests unanswered for a third of the time-out,
    /// or is silent for two thirds, though it is pinged every third.
    fn end(&self, timeout: Duration) -> Option<String> {
        if self.unanswered >= timeout / 3 {
            return Some(format!("no answer for {} ms", (timeout / 3).as_millis()));
        }
        (self.quiet >= timeout * 2 / 3).then(|| format!("nothing heard for {} ms", (timeout * 2 / 3).as_millis()))
    }
}

impl ReadingSide<'_> {
    /// Reads until the connection breaks; returns the reason.
    pub(super) async fn run<R: AsyncRead + Unpin>(&self, mut reader: FrameReader<R>, timeout: Duration) -> String {
        let step = STEP.min(timeout / STEPS).max(Duration::from_millis(1));
        let mut steps = tokio::time::interval_at(Instant::now() + step, step);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silence = Silence { received: reader.received(), ..Silence::default() };
        loop {
            let frame = tokio::select! {
                // The socket comes first: when a step ends, there was nothing in it.
                biased;
                frame = reader.next() => match frame {
                    Ok(frame) => frame,
                    Err(error) => return error.to_string(),
                },
                _ = steps.tick() => {
                    self.step(&mut silence, step, &reader);
                    match silence.end(timeout) {
                        None => continue,
                        Some(cause) => return cause,
                    }
                }
            };
            silence.quiet = Duration::ZERO;
            silence.ignored = Duration::ZERO;
            self.heard();
            match self.take(frame).await {
                Ok(true) => silence.answered(),
                Ok(false) => {}
                Err(cause) => return cause,
            }
        }
    }

    fn step<R: AsyncRead + Unpin>(&self, silence: &mut Silence, step: Duration, reader: &FrameReader<R>) {
        if reader.received() != silence.received {
            self.heard();
        }
        let waited = lock(self.pending).front().map(|request| clock::now().saturating_duration_since(request.sent_at));
        silence.step(step, reader.received(), reader.is_amid_frame(), waited);
        lock(self.identity).silence = silence.ignored;
    }

    fn heard(&self) {
        let mut identity = lock(self.identity);
        identity.last_heard = Some(Instant::now());
        identity.silence = Duration::ZERO;
    }

    /// Processes a frame; returns whether it answers a request. An error ends the connection.
    async fn take(&self, frame: ReplyFrame) -> Result<bool, String> {
        let too_large = match &frame {
            ReplyFrame::Whole(_) => None,
            ReplyFrame::TooLarge(_, length) => Some(Error::AnswerTooLarge(*length)),
        };
        let bytes = frame.into_bytes();
        let is_long = bytes.len() > DECODED_AT_ONCE;
        let mut decoder = Decoder::new(bytes);
        let header = ReplyHeader::decode(&mut decoder).map_err(|error| error.to_string())?;
        match header.xid {
            xid::AUTH => Ok(false),
            xid::PING => {
                self.watches.reached(Zxid(header.zxid));
                Ok(false)
            }
            xid::NOTIFICATION => {
                let event = WatcherEvent::decode(&mut decoder).map_err(|error| error.to_string())?;
                self.watches.dispatch(&Event {
                    kind: event.kind,
                    path: self.config.inner(&event.path).into(),
                    zxid: (header.zxid > 0).then_some(Zxid(header.zxid)),
                });
                Ok(false)
            }
            _ => {
                self.watches.reached(Zxid(header.zxid));
                if header.zxid > 0 {
                    let mut identity = lock(self.identity);
                    identity.last_zxid = identity.last_zxid.max(header.zxid);
                }
                self.answer(header, too_large, decoder, is_long).await.map(|()| true)
            }
        }
    }

    /// Hands a reply to the caller that waits for it. The request remains pending until its answer is decoded: if the
    /// connection ends meanwhile, the caller learns that the outcome is unknown.
    async fn answer(
        &self,
        header: ReplyHeader,
        too_large: Option<Error>,
        decoder: Decoder,
        is_long: bool,
    ) -> Result<(), String> {
        let (op_code, is_wanted) = match lock(self.pending).front() {
            Some(request) if request.xid == header.xid => (request.op_code, !request.reply.is_closed()),
            _ => return Err("a reply out of order".to_owned()),
        };
        let refused = ErrorCode::from_wire(header.error);
        let is_decoded = too_large.is_none() && refused.is_none() && is_worth_decoding(op_code, is_long, is_wanted);
        let response = if is_decoded { Some(self.decode(op_code, decoder, is_long).await) } else { None };
        let failing = match (refused, &response) {
            (Some(code), _) => Some((code, Error::from_reply(code))),
            (None, Some(Ok(Response::Parts(parts)))) => failed_as_a_whole(parts),
            _ => None,
        };
        let Some(Pending { sent_at, mailbox, reply, held, .. }) = lock(self.pending).pop_front() else {
            return Err("a reply that was answered meanwhile".to_owned());
        };
        let mut end = Ok(());
        match (response, too_large, failing) {
            (_, None, Some((code, error))) => {
                drop(reply.send(Err(error)));
                // The next handshake shows whether the session has really ended.
                if matches!(code, ErrorCode::SessionExpired | ErrorCode::SessionMoved) {
                    end = Err(code.to_string());
                }
            }
            (Some(Ok(response)), ..) => {
                if is_carried_out_write(op_code, &response) {
                    self.evidence.send_replace(sent_at);
                }
                let events = mailbox.as_ref().map(|mailbox| mailbox.take()).unwrap_or_default();
                let answer = Answer { zxid: Zxid(header.zxid), response, events };
                if let (Err(Ok(answer)), Some(mailbox)) = (reply.send(Ok(answer)), mailbox) {
                    mailbox.put_back(answer.events);
                }
            }
            (Some(Err(error)), ..) => {
                drop(reply.send(Err(Error::OutcomeUnknown)));
                end = Err(error.to_string());
            }
            (None, Some(error), _) => drop(reply.send(Err(error))),
            (None, None, None) => {}
        }
        drop(held);
        end
    }

    /// Decodes an answer, with paths relative to the chroot.
    async fn decode(&self, op_code: OpCode, mut decoder: Decoder, is_long: bool) -> Result<Response, Malformed> {
        let config = self.config.clone();
        let mut read = move || {
            let mut response = Response::decode(op_code, &mut decoder)?;
            if !config.chroot.is_empty() {
                response.map_paths(&|path| config.inner(path));
            }
            Ok(response)
        };
        if !is_long {
            return read();
        }
        compute::FOR_ZOOKEEPER.run(read).await
    }
}

/// The reason why a transaction failed, if the code of the failed part does not concern that part: ZooKeeper does not
/// know the session, or has no time. Nothing of the transaction was carried out.
fn failed_as_a_whole(parts: &[Result<Response, ErrorCode>]) -> Option<(ErrorCode, Error)> {
    let mut codes = parts.iter().filter_map(|part| part.as_ref().err().copied());
    let code = codes.find(|code| !matches!(Error::from_reply(*code), Error::Refused(_)))?;
    Some((code, Error::NotSent))
}

/// A long answer to a read that nobody waits for any more is thrown away undecoded. The answer to a write is evidence.
fn is_worth_decoding(op_code: OpCode, is_long: bool, is_wanted: bool) -> bool {
    is_wanted || !is_long || op_code == OpCode::Multi
}

/// Whether an answer shows that the leader knew the session when it was asked.
fn is_carried_out_write(op_code: OpCode, response: &Response) -> bool {
    match (op_code, response) {
        (OpCode::Multi, Response::Parts(parts)) => parts.iter().all(Result::is_ok),
        (OpCode::Create | OpCode::Create2 | OpCode::Delete | OpCode::SetData, _) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
