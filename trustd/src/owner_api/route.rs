//! Entries of the route table.

use axum::Router;
use axum::routing::MethodRouter;

/// A path with its methods and handler.
pub(super) struct Route<S> {
    /// Path, as in trustd/openapi.json.
    pub(super) path: &'static str,
    /// Methods in lower case, as in trustd/openapi.json.
    pub(super) methods: &'static [&'static str],
    handler: MethodRouter<S>,
}

impl<S: Clone + Send + Sync + 'static> Route<S> {
    /// Creates a route.
    pub(super) fn new(
        path: &'static str,
        methods: &'static [&'static str],
        handler: MethodRouter<S>,
    ) -> Self {
        Self { path, methods, handler }
    }

    /// Returns a router with these routes.
    pub(super) fn collect(routes: Vec<Self>) -> Router<S> {
        routes
            .into_iter()
            .fold(Router::new(), |router, Self { path, handler, .. }| router.route(path, handler))
    }
}
