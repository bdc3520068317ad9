// gRPC's own lines about handshakes and sockets, in the process log.
#pragma once

namespace quantry {

// gRPC writes to stderr by itself, as lines of no format of ours; anyone who
// connects and does not speak TLS makes it do so. After this they are entries of
// common/log.h: its errors as warnings, the rest (with GRPC_VERBOSITY) as debug.
// Call in main, before any use of gRPC.
void LogForGrpc();

}  // namespace quantry
