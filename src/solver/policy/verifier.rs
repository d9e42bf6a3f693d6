//! Policies of clients: a session that is asked about each source, and decides.

use bollard_buildkit_proto::moby::buildkit::v1::frontend::{ResolveSourceMetaRequest, ResolveSourceMetaResponse};
use bollard_buildkit_proto::moby::buildkit::v1::sourcepolicy::PolicyAction;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kiln_graph::Platform;
use kiln_llb::pb;

use crate::error::{Error, Result, ResultExt as _};
use crate::solver::job::Shared;
use crate::wire::policy::{CHECK, CheckPolicyRequest, CheckPolicyResponse, DecisionResponse, Verdict};

/// How often a client may ask back, or convert, before it decides about a source.
const MAX_QUESTIONS: usize = 10;

impl Shared {
    /// Lets the client's session decide about a source that the rules permit; what it converts, the rules decide about again.
    ///
    /// # Errors
    /// `Forbidden` for what it denies, with its reasons; `Unsupported` when the session has no such service.
    pub(super) fn verify<'a>(
        &'a self,
        source: pb::SourceOp,
        platform: &'a Platform,
    ) -> BoxFuture<'a, Result<pb::SourceOp>> {
        self.ask_verifier(source, platform).boxed()
    }

    async fn ask_verifier(&self, mut source: pb::SourceOp, platform: &Platform) -> Result<pb::SourceOp> {
        let Some(id) = &self.policies.session else { return Ok(source) };
        let session = self.session.sessions.get(id).await?;
        if !session.offers(CHECK) {
            return Err(Error::unsupported(format!("the session {id:?} serves no policy ({CHECK})")));
        }
        let known =
            |source: &pb::SourceOp| ResolveSourceMetaResponse { source: Some(source.clone()), ..Default::default() };
        let mut told = known(&source);
        for _ in 0..=MAX_QUESTIONS {
            let request = CheckPolicyRequest {
                platform: Some(kiln_llb::encode_platform(platform)),
                source: Some(told.clone()),
                ..CheckPolicyRequest::default()
            };
            let said: CheckPolicyResponse =
                session.unary(CHECK, request).await.context(|| "ask the client's policy")?;
            match said.result {
                Some(Verdict::Request(asked)) => told = self.tell(&source, *asked).await?,
                Some(Verdict::Decision(decision)) => match decide(&source, decision)? {
                    None => return Ok(source),
                    Some(converted) => {
                        source = self.policies.evaluate(converted)?;
                        told = known(&source);
                    }
                },
                None => return Err(Error::invalid("no decision in policy response")),
            }
        }
        Err(Error::invalid("too many policy requests"))
    }

    /// Finds out what a source is that the client wants to know more about.
    async fn tell(&self, source: &pb::SourceOp, asked: ResolveSourceMetaRequest) -> Result<ResolveSourceMetaResponse> {
        let about = asked.source.clone().unwrap_or_default();
        if about != *source {
            let text = format!("policy requested different source: {:?} != {:?}", about.identifier, source.identifier);
            return Err(Error::invalid(text));
        }
        let looked = Box::pin(self.look_at_source(asked)).await.map_err(|failure| failure.error);
        looked.context(|| "error resolving source metadata from policy request")
    }
}

/// Reads a decision; `None` leaves the source as it is.
fn decide(source: &pb::SourceOp, decision: DecisionResponse) -> Result<Option<pb::SourceOp>> {
    let name = match PolicyAction::try_from(decision.action) {
        Ok(PolicyAction::Allow) => return Ok(None),
        Ok(PolicyAction::Convert) => {
            let update = decision.update.ok_or_else(|| Error::invalid("convert action requires updated source"))?;
            return Ok(Some(update));
        }
        Ok(PolicyAction::Deny) => PolicyAction::Deny.as_str_name().to_owned(),
        Err(_) => decision.action.to_string(),
    };
    let reasons: Vec<String> = decision.deny_messages.into_iter().map(|reason| reason.message).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
    Err(Error::forbidden(format!("source {:?} not allowed by policy: action {name}{reasons}", source.identifier)))
}
