//! `rollcall register`.

use std::future::pending;
use std::process::ExitCode;

use rollcall::{Client, Registration, RegistrationState};
use rustix::process::Signal;

use super::args::RegisterArgs;
use super::check::{Check, Counter, Health};
use super::child::{Child, Signals, code, is_ending};
use super::exit::{Failure, Outcome, UNREACHABLE};
use super::term::{parse_data, say};
use super::waiting::Waiting;

pub(crate) async fn run(client: &Client, mut args: RegisterArgs) -> Outcome {
    let data = parse_data(&args.data)?;
    let command = std::mem::take(&mut args.command);
    let check = args.check.take().map(|check| Check::new(check, args.every, Counter::new(args.rise, args.fall)));
    let place = Place { client: client.clone(), path: args.path, data, ttl: args.ttl, exclusive: args.exclusive };
    if command.is_empty() {
        let mut signals = Signals::ending()?;
        let mut presence = Presence::new(place, check);
        return tokio::select! {
            end = presence.keep() => Err(end),
            _ = signals.next() => {
                let is_in_vain = presence.registration.is_some() && !presence.was_registered;
                presence.leave().await;
                match is_in_vain {
                    true => Err(Failure::new(UNREACHABLE, format!("{} was never registered", presence.place.path))),
                    false => Ok(ExitCode::SUCCESS),
                }
            }
        };
    }
    beside(Child::start(&command, [("ROLLCALL_REGISTRATION", place.path.clone())])?, Presence::new(place, check)).await
}

/// Registers while COMMAND runs.
async fn beside(mut child: Child, mut presence: Presence) -> Outcome {
    let mut signals = Signals::all()?;
    // Whether the registration is over while COMMAND runs on, and why it was refused.
    let mut is_over = false;
    let mut refused = None;
    // Whether the registration was under way when a signal ended it.
    let mut was_pending = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            end = presence.keep(), if !is_over => {
                is_over = true;
                if presence.was_registered {
                    // The client that has taken it over is most likely meant to. COMMAND may still have work to finish.
                    end.report();
                } else {
                    child.signal(Signal::TERM);
                    refused = Some(end);
                }
            }
            signal = signals.next() => {
                child.signal(signal);
                if is_ending(signal) && !is_over {
                    // No new clients should come while COMMAND ends, and COMMAND may take its time.
                    is_over = true;
                    was_pending = presence.registration.is_some();
                    presence.leave().await;
                }
            }
        }
    };
    was_pending |= presence.registration.is_some();
    if refused.is_none() && !presence.was_registered {
        let why = if was_pending { "" } else { ": its check has never passed" };
        say(&format!("COMMAND has ended, and {} was never registered{why}", presence.place.path));
    }
    presence.leave().await;
    refused.map_or_else(|| Ok(code(status)), Err)
}

/// The registration to make.
struct Place {
    client: Client,
    path: String,
    data: serde_json::Map<String, serde_json::Value>,
    ttl: std::time::Duration,
    exclusive: bool,
}

/// A registration that may exist.
struct Presence {
    place: Place,
    check: Option<Check>,
    registration: Option<Registration>,
    was_registered: bool,
    /// The last state that was reported.
    told: Option<RegistrationState>,
    waiting: Waiting,
}

impl Presence {
    fn new(place: Place, check: Option<Check>) -> Self {
        let waiting = Waiting::new(&place.client, &format!("the registration of {}", place.path));
        Self { place, check, registration: None, was_registered: false, told: None, waiting }
    }

    /// Registers, and takes the registration down, as the check decides. Returns only when it can't go on.
    ///
    /// # Cancellation
    /// Safe: the next call goes on.
    async fn keep(&mut self) -> Failure {
        loop {
            if self.check.is_none()
                && self.registration.is_none()
                && let Err(failure) = self.enter()
            {
                return failure;
            }
            let Self { check, registration, waiting, .. } = self;
            let health = tokio::select! {
                health = async { match check { Some(check) => check.changed().await, None => pending().await } } => Some(health),
                state = next_state(registration) => match self.tell(state) {
                    Ok(()) => None,
                    Err(failure) => return failure,
                },
                never = waiting.tell(), if registration.is_some() => match never {},
            };
            match health {
                Some(Health::Up) => {
                    say("the check passes: registering");
                    if let Err(failure) = self.enter() {
                        return failure;
                    }
                }
                Some(Health::Down) => {
                    say("the check fails: taking the registration down");
                    self.leave().await;
                }
                None => {}
            }
        }
    }

    fn enter(&mut self) -> Result<(), Failure> {
        let Place { client, path, data, ttl, exclusive } = &self.place;
        let mut register = client.register(path).data(data);
        register = if ttl.is_zero() { register.without_ttl() } else { register.ttl(*ttl) };
        if *exclusive {
            register = register.exclusive();
        }
        self.registration = Some(register.in_background()?);
        self.waiting.set_pending(None);
        Ok(())
    }

    async fn leave(&mut self) {
        if let Some(registration) = self.registration.take()
            && let Err(error) = registration.close().await
        {
            let path = &self.place.path;
            say(&match self.told.take() {
                Some(_) => format!("{path} could not be taken down, and stays until its ttl runs out: {error}"),
                None => {
                    format!("{path} is not registered yet; a late registration stays until its ttl runs out: {error}")
                }
            });
        }
        self.told = None;
        self.waiting.set_done();
    }

    fn tell(&mut self, state: RegistrationState) -> Result<(), Failure> {
        let path = &self.place.path;
        match &state {
            RegistrationState::Pending { reason } => self.waiting.set_pending(reason.clone()),
            _ => self.waiting.set_done(),
        }
        match &state {
            RegistrationState::Registered { .. } => {
                match self.told {
                    Some(RegistrationState::Registered { .. }) => {}
                    Some(RegistrationState::Overwritten { .. }) => {
                        say(&format!("{path} has its own data again"));
                    }
                    Some(RegistrationState::Pending { .. }) => say(&format!("{path} is registered again")),
                    _ => say(&format!("registered {path}")),
                }
                self.was_registered = true;
            }
            RegistrationState::Pending { .. } if self.told.is_none() => return Ok(()),
            RegistrationState::Pending { .. } if !matches!(self.told, Some(RegistrationState::Pending { .. })) => {
                say(&format!("{path} may not be registered any more; trying again"));
            }
            RegistrationState::Overwritten { .. } => {
                say(&format!("somebody else has written into {path}; the server will put it right"));
            }
            RegistrationState::Lost { reason } => {
                self.registration = None;
                return Err(Failure::of_loss(path, reason));
            }
            _ => {}
        }
        self.told = Some(state);
        Ok(())
    }
}

async fn next_state(registration: &mut Option<Registration>) -> RegistrationState {
    let Some(registration) = registration else { return pending().await };
    registration.changed().await
}
