//! Real clients and servers of HTTP through the proxy: what each of them says must be what it says without one.

mod clients;
mod grpc;
mod load;
mod rig;
mod websocket;
