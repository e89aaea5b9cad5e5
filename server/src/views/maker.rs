//! Makes the parts of states and deltas: short ones at once, long ones in turns on blocking threads.

use std::sync::Arc;

use super::Views;
use super::parts::{Begin, KeptParts, MadePart, PartForm, PartKey, Parts, Payers};
use super::ring::Delta;
use super::state::State;
use crate::budget::{Account, Budget};
use crate::compute::FOR_CLIENTS;
use crate::error::Error;
use crate::turns::Turns;

/// Maximum number of bytes that are converted at once: 1 ms of the worst JSON.
const JSON_BYTES_PER_STEP: usize = 16 * 1024;
/// Maximum number of bytes of parts that are kept while nobody has them.
const MAX_KEPT: usize = 64 * 1024 * 1024;

/// The accounts and turns with which all parts are made.
#[derive(Debug)]
pub(super) struct Maker {
    payers: Payers,
    turns: Turns<()>,
}

impl Maker {
    pub(super) fn new(budget: &Budget) -> Self {
        // One core is left for everything else.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let payers = Payers { common: budget.common_account(), kept: KeptParts::new(MAX_KEPT) };
        Self { payers, turns: Turns::new((cores / 2).clamp(1, 4)) }
    }

    /// A part, made unless another caller has made it meanwhile. `work`: the number of bytes to convert; it need not be
    /// counted further once it exceeds [`JSON_BYTES_PER_STEP`].
    async fn part(
        &self,
        account: &Account,
        parts: &Parts,
        key: PartKey,
        work: usize,
        make: impl FnOnce() -> MadePart + Send + 'static,
    ) -> Result<MadePart, Error> {
        if work <= JSON_BYTES_PER_STEP {
            return parts.put(key, make(), account, &self.payers);
        }
        // A call that was already cancelled ends here, and costs nothing.
        tokio::task::yield_now().await;
        let turn = self.turns.turn(&(), account.id()).await;
        if let Some(made) = parts.get(&key, account)? {
            return Ok(made);
        }
        // The turn lasts as long as the work, even if nobody waits for it any more.
        let (made, _turn) = FOR_CLIENTS.run(move || (make(), turn)).await;
        parts.put(key, made, account, &self.payers)
    }
}

impl Views {
    /// A part of a state, for this connection; it is made once for all that want the same at the same time.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] when the connection, or the replica, holds too much that was not read yet.
    ///
    /// # Cancellation
    /// Safe: a part that nobody waits for is not made.
    pub(crate) async fn state_part(
        &self,
        account: &Account,
        state: &Arc<State>,
        key: PartKey,
        make: fn(&State, &PartKey) -> MadePart,
    ) -> Result<MadePart, Error> {
        if let Some(made) = state.parts().get(&key, account)? {
            return Ok(made);
        }
        let (work, of, wanted) = (state.work(&key, JSON_BYTES_PER_STEP), state.clone(), key.clone());
        self.maker().part(account, state.parts(), key, work, move || make(&of, &wanted)).await
    }

    /// The same for a delta, from the change with this index on.
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
        make: fn(&Delta, usize) -> MadePart,
    ) -> Result<MadePart, Error> {
        let begin = if first == 0 { Begin::First } else { Begin::At(first) };
        let key = PartKey { form: PartForm::Changes, begin, size: 0 };
        if let Some(made) = delta.parts().get(&key, account)? {
            return Ok(made);
        }
        let (work, of) = (delta.work(first, JSON_BYTES_PER_STEP), delta.clone());
        self.maker().part(account, delta.parts(), key, work, move || make(&of, first)).await
    }
}
