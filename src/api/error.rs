//! Errors as the Engine API writes them: a status and `{"message": "..."}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::error::Error;
use crate::types::ErrorBody;

/// An error on its way to a client.
#[derive(Debug)]
pub struct ApiError(Error);

impl<E: Into<Error>> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl ApiError {
    /// Returns the status and the text.
    #[must_use]
    pub fn parts(&self) -> (StatusCode, String) {
        let (status, ..) = self.0.kind().codes();
        let status = StatusCode::from_u16(status).expect("the table holds valid statuses");
        (status, self.0.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, message) = self.parts();
        if status == StatusCode::NOT_MODIFIED {
            return status.into_response();
        }
        (status, Json(ErrorBody { message })).into_response()
    }
}
