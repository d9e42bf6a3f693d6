//! Exporters that the client's session names once there is a result.

use std::collections::BTreeMap;

use super::Export;
use crate::error::{Kind, Result, ResultExt as _};
use crate::solver::job::Shared;
use crate::solver::request::Exporter;
use crate::solver::session::Session;
use crate::wire::exporter::{
    FINALIZE, FIND, FinalizeExportRequest, FinalizeExportResponse, FindExportersRequest, FindExportersResponse,
};

impl Shared {
    /// The session, if the build asks it for exporters and it has the method.
    async fn exporting_session(&self, method: &str) -> Result<Option<Session>> {
        let session = if self.session_exporter { self.session.get().await? } else { None };
        Ok(session.filter(|session| session.offers(method)))
    }

    /// Asks the client's session what becomes of a result besides; nothing, when the build does not say so or the session has no
    /// such service.
    ///
    /// # Errors
    /// As [`Export::parse`]; what the client answers.
    pub(in crate::solver) async fn find_exports(
        &self,
        metadata: &BTreeMap<String, Vec<u8>>,
        refs: Vec<String>,
    ) -> Result<Vec<Export>> {
        let Some(session) = self.exporting_session(FIND).await? else { return Ok(Vec::new()) };
        let metadata = metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let asked = session.unary(FIND, FindExportersRequest { metadata, refs }).await;
        let found: FindExportersResponse = match asked {
            // As with BuildKit, one that knows none then is asked for none.
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Unsupported) => return Ok(Vec::new()),
            asked => asked.context(|| "ask the client for exporters")?,
        };
        let exporter = |found: crate::wire::exporter::ExporterRequest| {
            let exporter = Exporter { kind: found.r#type, attrs: found.attrs.into_iter().collect() };
            Export::parse(&exporter).context(|| "an exporter of the client's session")
        };
        found.exporters.into_iter().map(exporter).collect()
    }

    /// Tells the client's session what came of all exports, if it was asked for some.
    ///
    /// # Errors
    /// What the client answers.
    pub(in crate::solver) async fn finalize_exports(&self, response: &BTreeMap<String, String>) -> Result<()> {
        let Some(session) = self.exporting_session(FINALIZE).await? else { return Ok(()) };
        let exporter_response = response.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let told = session.unary(FINALIZE, FinalizeExportRequest { exporter_response }).await;
        match told {
            Ok(FinalizeExportResponse {}) => Ok(()),
            Err(error) if error.kind() == Kind::Unsupported => Ok(()),
            Err(error) => Err(error.context("tell the client what came of the exports")),
        }
    }
}
