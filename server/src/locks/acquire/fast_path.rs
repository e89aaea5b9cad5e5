//! The short cut for a lock without holders and contenders: one transaction takes it, [create the contender, delete the
//! contender, create the lease].
//!
//! The digits of a contender count the contenders that ever existed, and the delete has to name them beforehand. So the
//! transaction succeeds only if no contender has come since the queue was seen empty. Then this contender is the first,
//! and no lease can have been taken meanwhile, for which a contender is needed: the rules of the recipe hold.
//!
//! An attempt reads the queue and the leases before. It skips this read for a lock that this replica was the last to
//! take and give back ([`VacancyHint`]), unless other contenders were seen in between. An acquire and a release of a
//! free lock then cost two transactions.

use bytes::Bytes;

use super::hints::{Rivals, VacancyHint};
use crate::locks::recipe::contenders::{is_worn_out, next_digits};
use crate::locks::recipe::own_nodes::OwnNodes;
use crate::types::{NodePath, Stat};
use crate::zk::{self, Request, Session};

/// The conclusion from a look at a lock and its queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Vacancy {
    /// The lock has neither holders nor contenders.
    Vacant(VacancyHint),
    /// The queue is empty, and has to be replaced because its sequence numbers run out.
    WornOut,
    /// The lock is in use, or it is not sure that it is not.
    InUse,
}

/// The lists and records of a lock and its queue, as they were read.
#[derive(Debug)]
pub(super) struct VacancyLook {
    pub(super) contenders: usize,
    pub(super) queue: Stat,
    pub(super) leases: usize,
    pub(super) lock: Stat,
}

/// Reads the lists of contenders and of leases; `None`: one of the nodes does not exist.
pub(super) async fn look(
    session: &Session,
    queue: &NodePath,
    path: &NodePath,
) -> Result<Option<VacancyLook>, zk::Error> {
    // Polled in this order and sent in this order: the queue is never read later than the leases.
    let (contenders, leases) = futures_util::future::join(session.children(queue), session.children(path)).await;
    let (Some((contenders, queue)), Some((leases, lock))) = (contenders?, leases?) else { return Ok(None) };
    Ok(Some(VacancyLook { contenders: contenders.len(), queue, leases: leases.len(), lock }))
}

/// Whether a lock is vacant. `is_checked`: the lock node's number was read and not written since. `left`: the vacancy
/// that this replica left behind. Pure.
pub(super) fn vacancy(look: &VacancyLook, is_checked: bool, left: Option<VacancyHint>) -> Vacancy {
    if look.contenders == 0 && is_worn_out(&look.queue) {
        return Vacancy::WornOut;
    }
    if look.contenders > 0 || look.leases > 0 || !is_checked {
        return Vacancy::InUse;
    }
    let Some(next) = next_digits(&look.queue) else { return Vacancy::InUse };
    let rivals = if left.is_some_and(|left| left.next == next) { Rivals::None } else { Rivals::Perhaps };
    Vacancy::Vacant(VacancyHint { next, rivals })
}

/// The transaction that takes a vacant lock.
pub(super) fn transaction(nodes: &OwnNodes, vacancy: VacancyHint, name: &Bytes) -> Vec<Request> {
    let contender = nodes.contender_with(vacancy.next);
    let mut ops = vec![nodes.enqueue(name.clone())];
    ops.extend(nodes.grant(&contender, name.clone()));
    ops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_vacant_if_it_has_neither_contenders_nor_leases_and_the_limit_that_was_checked() {
        let look = |contenders: i32, leases, created: i32| VacancyLook {
            contenders: usize::try_from(contenders).unwrap(),
            queue: Stat {
                cversion: created.wrapping_mul(2).wrapping_sub(contenders),
                num_children: contenders,
                ..Stat::default()
            },
            leases,
            lock: Stat::default(),
        };
        let vacancy = |look, left| vacancy(&look, true, left);
        let hint = |rivals| VacancyHint { next: 7, rivals };
        assert_eq!(vacancy(look(0, 0, 7), None), Vacancy::Vacant(hint(Rivals::Perhaps)));
        assert_eq!(vacancy(look(0, 0, 7), Some(hint(Rivals::Perhaps))), Vacancy::Vacant(hint(Rivals::None)));
        let earlier = VacancyHint { next: 6, rivals: Rivals::None };
        assert_eq!(vacancy(look(0, 0, 7), Some(earlier)), Vacancy::Vacant(hint(Rivals::Perhaps)), "one came between");
        assert_eq!((vacancy(look(1, 0, 7), None), vacancy(look(0, 1, 7), None)), (Vacancy::InUse, Vacancy::InUse));
        assert_eq!(super::vacancy(&look(0, 0, 7), false, None), Vacancy::InUse, "the limit may be another");
        assert_eq!(vacancy(look(0, 1, i32::MAX), None), Vacancy::WornOut);
        assert_eq!(vacancy(look(1, 0, i32::MAX), None), Vacancy::InUse);
    }
}
