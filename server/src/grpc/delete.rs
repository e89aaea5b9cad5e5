//! Delete.

use rollcall_proto::server::v1;

use super::Service;
use crate::error::Error;

impl Service {
    pub(super) async fn do_delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Error> {
        self.check_writable()?;
        let path = self.settings.path_to_write(&request.path)?;
        self.durable.delete(&path, request.expected_version, request.recursive).await?;
        Ok(v1::DeleteResponse {})
    }
}
