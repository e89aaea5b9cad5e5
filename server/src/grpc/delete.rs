//! Delete.

use rollcall_proto::v1;

use super::{Service, convert};
use crate::error::Error;

impl Service {
    pub(super) async fn do_delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, Error> {
        self.check_writable()?;
        let path = convert::path_below_root(&request.path)?;
        self.durable.delete(&path, request.expected_version, request.recursive).await?;
        Ok(v1::DeleteResponse {})
    }
}
