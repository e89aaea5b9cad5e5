//! Put.

use bytes::Bytes;
use rollcall_proto::server::v1;
use tonic::Request;

use super::admission::{account, acknowledged};
use super::{Service, convert};
use crate::clock;
use crate::durable::Expect;
use crate::error::Error;
use crate::value::Stamp;

impl Service {
    pub(super) async fn do_put(&self, request: Request<v1::PutRequest>) -> Result<v1::PutResponse, Error> {
        self.check_writable()?;
        let (account, acknowledged) = (account(&request), acknowledged(&request));
        let request = request.into_inner();
        let path = self.settings.path_to_write(&request.path)?;
        let stamp = Stamp { pid: None, created: clock::created_now() };
        let value = convert::value(&path, request.value, self.settings.max_value_bytes)?;
        let bytes = value.map_or_else(Bytes::new, |value| value.to_stamped_bytes(&stamp));
        self.settings.check_size(&path, bytes.len())?;
        let expect = match (request.expected_version, request.create_only) {
            (Some(_), true) => {
                let cause = "it can't go with create_only".to_owned();
                return Err(Error::Protocol { field: "expected_version", cause });
            }
            (Some(version), false) => Expect::Version(version),
            (None, true) => Expect::Absent,
            (None, false) => Expect::Anything,
        };
        let put = self.durable.put(&path, bytes, expect, &account).await;
        match &put {
            Ok(stat) => acknowledged.note_stat(stat),
            // An error reports state, too: the node that was in the way.
            Err(_) => acknowledged.note(self.views.last_zxid()),
        }
        let stat = put?;
        Ok(v1::PutResponse { stat: Some(convert::stat_to_proto(&stat)) })
    }
}
