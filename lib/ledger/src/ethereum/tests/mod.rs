mod follow;
mod others;
mod refuse;
mod sim;
