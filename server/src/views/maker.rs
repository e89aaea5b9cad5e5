//! Makes the parts of states and deltas: short ones at once, long ones in turns on blocking threads.

use super::parts::{KeptParts, MadePart, PartKey, Parts, Payers};
use crate::budget::{Account, Budget};
use crate::compute::{FOR_CLIENTS, JSON_BYTES_PER_STEP};
use crate::error::Error;
use crate::turns::Turns;

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
    pub(super) async fn part(
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
