//! Delete.

use rollcall_proto::server::v1;
use tonic::Request;

use super::Service;
use super::admission::{account, acknowledged};
use crate::error::Error;

impl Service {
    pub(super) async fn do_delete(&self, request: Request<v1::DeleteRequest>) -> Result<v1::DeleteResponse, Error> {
        self.check_writable()?;
        let (account, acknowledged) = (account(&request), acknowledged(&request));
        let request = request.into_inner();
        let path = self.settings.path_to_write(&request.path)?;
        let deleted = self.durable.delete(&path, request.expected_version, request.recursive, &account).await;
        // Also if only a part of the subtree is gone.
        acknowledged.note(self.views.last_zxid());
        deleted.map(|()| v1::DeleteResponse {})
    }
}
