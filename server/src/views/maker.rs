//! Makes the parts of states and deltas: what is short at once, what is long in turns on blocking threads.

use std::sync::Arc;

use super::Views;
use super::parts::{Begin, Form, Kept, Key, Made, Parts, Payers};
use super::ring::Delta;
use super::state::State;
use crate::budget::{Account, Budget};
use crate::compute::FOR_CLIENTS;
use crate::error::Error;
use crate::turns::Turns;

/// What is converted at once, in bytes: 1 ms of the worst JSON.
const SHORT: usize = 16 * 1024;
/// What is kept of parts that nobody has, in bytes.
const MAX_KEPT: usize = 64 * 1024 * 1024;

/// What all parts are made with.
#[derive(Debug)]
pub(super) struct Maker {
    payers: Payers,
    turns: Turns<()>,
}

impl Maker {
    pub(super) fn new(budget: &Budget) -> Self {
        // One core is left for everything else.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let payers = Payers { common: budget.common_account(), kept: Kept::new(MAX_KEPT) };
        Self { payers, turns: Turns::new((cores / 2).clamp(1, 4)) }
    }

    /// A part, which somebody may have made before. `work`: how much there is to convert, as far as [`SHORT`] is passed.
    async fn part(
        &self,
        account: &Account,
        parts: &Parts,
        key: Key,
        work: usize,
        make: impl FnOnce() -> Made + Send + 'static,
    ) -> Result<Made, Error> {
        if work <= SHORT {
            return parts.put(key, make(), account, &self.payers);
        }
        // A call that was cancelled already ends here, and costs nothing.
        tokio::task::yield_now().await;
        let turn = self.turns.turn(&(), account.id()).await;
        if let Some(made) = parts.get(&key, account)? {
            return Ok(made);
        }
        // The turn lasts as long as the work, also when nobody waits for it any more.
        let (made, _turn) = FOR_CLIENTS.run(move || (make(), turn)).await;
        parts.put(key, made, account, &self.payers)
    }
}

impl Views {
    /// A part of a state, for this connection; made once for all that want the same at the same time.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the connection has too much that it has not read, or the replica has.
    ///
    /// # Cancellation
    /// Safe: what nobody waits for is not made.
    pub(crate) async fn state_part(
        &self,
        account: &Account,
        state: &Arc<State>,
        key: Key,
        make: fn(&State, &Key) -> Made,
    ) -> Result<Made, Error> {
        if let Some(made) = state.parts().get(&key, account)? {
            return Ok(made);
        }
        let (work, of, wanted) = (state.work(&key, SHORT), state.clone(), key.clone());
        self.maker().part(account, state.parts(), key, work, move || make(&of, &wanted)).await
    }

    /// The same, of a delta, beginning with the change of this index.
    ///
    /// # Errors
    /// Those of [`Views::state_part`].
    ///
    /// # Cancellation
    /// Safe.
    pub(crate) async fn delta_part(
        &self,
        account: &Account,
        delta: &Arc<Delta>,
        first: usize,
        make: fn(&Delta, usize) -> Made,
    ) -> Result<Made, Error> {
        let begin = if first == 0 { Begin::First } else { Begin::At(first) };
        let key = Key { form: Form::Changes, begin, size: 0 };
        if let Some(made) = delta.parts().get(&key, account)? {
            return Ok(made);
        }
        let (work, of) = (delta.work(first, SHORT), delta.clone());
        self.maker().part(account, delta.parts(), key, work, move || make(&of, first)).await
    }
}
