//! Networks and volumes, as far as there are any: the predefined networks are listed and inspected, and there are no volumes.

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use serde_json::{Map, Value, json};

use super::Answer;
use super::params::Params;
use crate::engine::Engine;
use crate::error::Error;
use crate::network::NetworkInfo;
use crate::task;

const FILTERS: &[&str] = &["dangling", "driver", "id", "label", "label!", "name", "scope", "type", "until"];

/// The routes.
pub(super) fn routes() -> Router<Engine> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", axum::routing::post(create))
        .route("/networks/prune", axum::routing::post(prune))
        .route("/networks/{id}", get(inspect))
        .route("/volumes", get(volumes))
        .route("/volumes/create", axum::routing::post(create_volume))
        .route("/volumes/prune", axum::routing::post(prune_volumes))
        .route("/volumes/{name}", get(volume))
}

async fn list(State(engine): State<Engine>, params: Params) -> Answer<Json<Value>> {
    let filters = params.filters(FILTERS)?;
    let networks = task::blocking(move || engine.network().list()).await?;
    // The predefined networks are all there is: they have no labels, are never in the way, and are local.
    let named = |network: &&NetworkInfo| {
        filters.any("name", |name| network.name.contains(name))
            && filters.any("id", |id| network.id.as_str().starts_with(id))
            && filters.any("driver", |driver| network.driver.as_str() == driver)
            && filters.any("scope", |scope| scope == "local")
            && filters.any("type", |kind| kind == "builtin")
            && filters.all("label").is_empty()
    };
    let custom = filters.flag("dangling")?.is_some_and(|dangling| dangling);
    let networks = networks.iter().filter(named).filter(|_| !custom).map(|network| describe(network, false));
    Ok(Json(networks.collect()))
}

async fn inspect(State(engine): State<Engine>, Path(id): Path<String>) -> Answer<Json<Value>> {
    let network = task::blocking(move || engine.network().inspect(&id)).await?;
    Ok(Json(describe(&network, true)))
}

fn describe(network: &NetworkInfo, with_containers: bool) -> Value {
    let created = jiff::Timestamp::from_nanosecond(network.created_ns.into()).unwrap_or_default();
    let mut config = Vec::new();
    let mut options = Map::new();
    if let Some(bridge) = &network.bridge {
        config.push(json!({ "Subnet": bridge.subnet.to_string(), "Gateway": bridge.gateway.to_string() }));
        options.insert("com.docker.network.bridge.default_bridge".to_owned(), json!("true"));
        options.insert("com.docker.network.bridge.name".to_owned(), json!(bridge.interface));
    }
    let mut value = json!({
        "Name": network.name,
        "Id": network.id.as_str(),
        "Created": created.to_string(),
        "Scope": "local",
        "Driver": network.driver.as_str(),
        "EnableIPv4": true,
        "EnableIPv6": false,
        "IPAM": { "Driver": "default", "Options": null, "Config": config },
        "Internal": false,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": {},
        "Options": options,
        "Labels": {},
    });
    if with_containers {
        let connected = network.endpoints.iter().map(|endpoint| {
            let item = json!({
                "Name": endpoint.name,
                "EndpointID": endpoint.id.as_str(),
                "MacAddress": endpoint.mac.to_string(),
                "IPv4Address": format!("{}/{}", endpoint.address, endpoint.prefix_len),
                "IPv6Address": "",
            });
            (endpoint.owner.clone(), item)
        });
        value["Containers"] = Value::Object(connected.collect());
    }
    value
}

async fn create() -> Answer<()> {
    Err(Error::unsupported("networks of one's own are not supported yet: use bridge, host or none").into())
}

/// The predefined networks stay.
async fn prune(params: Params) -> Answer<Json<Value>> {
    params.filters(&["label", "label!", "until"])?;
    Ok(Json(json!({ "NetworksDeleted": null })))
}

async fn volumes(params: Params) -> Answer<Json<Value>> {
    params.filters(&["dangling", "driver", "label", "label!", "name"])?;
    Ok(Json(json!({ "Volumes": [], "Warnings": null })))
}

async fn volume(Path(name): Path<String>) -> Answer<()> {
    Err(Error::not_found(format!("get {name}: no such volume")).into())
}

async fn create_volume() -> Answer<()> {
    Err(Error::unsupported("volumes are not supported yet: bind a directory of the host with -v /path:/path").into())
}

async fn prune_volumes(params: Params) -> Answer<Json<Value>> {
    params.filters(&["all", "label", "label!"])?;
    Ok(Json(json!({ "VolumesDeleted": null, "SpaceReclaimed": 0 })))
}
