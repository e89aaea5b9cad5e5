//! Compares the data of a claim with those of a node: large ones on another thread.

use bytes::Bytes;

use super::claims::{Claim, ClaimStep, decide};
use crate::compute;
use crate::types::NodePath;
use crate::zk::Read;

/// Whether it takes long to compare the wanted data with those of the node, or with those that the same holder had
/// written before: each may be large.
fn takes_long(claim: &Claim, read: Option<&Read>) -> bool {
    let others = claim.first.iter().chain(read.map(|read| &read.data));
    others
        .map(|other| other.len().max(claim.content.len()))
        .max()
        .is_some_and(|largest| largest > compute::JSON_BYTES_PER_STEP)
}

/// Like [`Claim::bytes`], but on another thread if it takes long to compare them with those that were written before.
pub(super) async fn new_bytes(claim: &Claim) -> Bytes {
    if !takes_long(claim, None) {
        return claim.bytes();
    }
    let claim = claim.clone();
    Box::pin(compute::FOR_CLIENTS.run(move || claim.bytes())).await
}

/// Like [`decide`], but on another thread if the values are so large that it takes long to compare them.
pub(super) async fn decided(
    claim: &Claim,
    path: &NodePath,
    read: Option<&Read>,
    on_our_session: bool,
    is_current: bool,
) -> ClaimStep {
    if !takes_long(claim, read) {
        return decide(claim, path, read, on_our_session, is_current);
    }
    let (claim, path, read) = (claim.clone(), path.clone(), read.cloned());
    compute::FOR_CLIENTS.run(move || decide(&claim, &path, read.as_ref(), on_our_session, is_current)).await
}

#[cfg(test)]
mod tests {
    use futures_util::future::FutureExt as _;

    use super::super::claims::{Content, Policy};
    use super::*;
    use crate::types::{Generation, Stat};

    #[test]
    fn a_large_value_is_compared_apart_whichever_side_it_is_on() {
        let (small, large) = (Bytes::from_static(b"{}"), Bytes::from(vec![b' '; 256 * 1024]));
        let claim = |bytes: &Bytes| Claim::new(Content::Exact(bytes.clone()), Policy::Update(Generation(1)));
        let read = |bytes: &Bytes| Read { data: bytes.clone(), stat: Stat::default() };
        assert!(!takes_long(&claim(&small), Some(&read(&small))));
        assert!(takes_long(&claim(&large), Some(&read(&small))));
        assert!(takes_long(&claim(&small), Some(&read(&large))));
        assert!(!takes_long(&claim(&large), None), "nothing is compared");
    }

    #[tokio::test]
    async fn a_large_value_is_compared_apart_with_what_was_written_before_where_nothing_stands() {
        let (small, large) = (Bytes::from_static(b"{}"), Bytes::from(vec![b' '; 256 * 1024]));
        let claim = |bytes: &Bytes, first: Option<&Bytes>| {
            let mut claim = Claim::new(Content::Exact(bytes.clone()), Policy::Update(Generation(1)));
            claim.first = first.cloned();
            claim
        };
        for (bytes, first, is_here) in [
            (&small, Some(&small), true),
            (&large, None, true),
            (&large, Some(&small), false),
            (&small, Some(&large), false),
        ] {
            let claim = claim(bytes, first);
            // Not by whether the first poll is ready: the other thread may be as fast.
            assert_eq!(!takes_long(&claim, None), is_here, "{} after {:?}", bytes.len(), first.map(Bytes::len));
            if is_here {
                assert!(new_bytes(&claim).now_or_never().is_some());
            }
            assert_eq!(new_bytes(&claim).await, *bytes);
        }
    }
}
