#include "server/server_config.h"

#include <functional>

#include "common/config_loader.h"
#include "gtest/gtest.h"

namespace quantry::server {
namespace {

v1::ServerConfig Defaults() {
  v1::ServerConfig config;
  EXPECT_TRUE(LoadConfig({}, &config).ok());
  config.set_data_dir("/data/x");
  return config;
}

TEST(ServerConfig, PathsFollowTheDataFolder) {
  v1::ServerConfig config = Defaults();
  config.set_data_dir("/data/./x/y/..");
  ASSERT_TRUE(FinishServerConfig(&config).ok());
  EXPECT_EQ(config.artifact_root(), "file:///data/x/artifacts");
  EXPECT_EQ(config.run_dir(), "/data/x/run");
  EXPECT_EQ(config.blob_dir(), "/data/x/blobs");
  EXPECT_EQ(BlobRoot(config), "file:///data/x/blobs");
  EXPECT_EQ(config.job_store(), "sqlite");
  EXPECT_NE(config.worker_binary().find("/quantry-worker"), std::string::npos);
  EXPECT_NE(config.engine_binary().find("/quantry-engine"), std::string::npos);
}

TEST(ServerConfig, UploadsHaveOnePlace) {
  v1::ServerConfig config = Defaults();
  config.set_blob_root("s3://bucket/uploads?region=x");
  ASSERT_TRUE(FinishServerConfig(&config).ok());
  EXPECT_EQ(BlobRoot(config), "s3://bucket/uploads?region=x");
  EXPECT_EQ(config.blob_dir(), "");
  config = Defaults();
  config.set_blob_dir("/uploads");
  ASSERT_TRUE(FinishServerConfig(&config).ok());
  EXPECT_EQ(BlobRoot(config), "file:///uploads");
}

TEST(ServerConfig, DataFolderComesFromTheEnvironment) {
  setenv("XDG_STATE_HOME", "/state", 1);
  v1::ServerConfig config = Defaults();
  config.clear_data_dir();
  ASSERT_TRUE(FinishServerConfig(&config).ok());
  EXPECT_EQ(config.data_dir(), "/state/quantry");
  unsetenv("XDG_STATE_HOME");
  setenv("HOME", "/home/me", 1);
  config.clear_data_dir();
  ASSERT_TRUE(FinishServerConfig(&config).ok());
  EXPECT_EQ(config.data_dir(), "/home/me/.local/state/quantry");
}

TEST(ServerConfig, WrongValuesNameTheirFlag) {
  struct Case {
    std::function<void(v1::ServerConfig*)> damage;
    const char* wanted;
  };
  const Case cases[] = {
      {[](auto* c) { c->set_listen("0.0.0.0:7070"); },
       "--listen: refusing to listen on 0.0.0.0:7070, which is not loopback, without "
       "--tls-cert-file, --tls-key-file, one of --principals-file, --tls-client-ca-file and "
       "--jwks-file"},
      {[](auto* c) { c->set_worker_listen("[::]:1"); }, "--worker-listen: refusing"},
      {[](auto* c) {
         c->set_listen("0.0.0.0:7070");
         c->set_tls_cert_file("c");
         c->set_tls_key_file("k");
       },
       "without one of --principals-file"},
      {[](auto* c) {
         c->set_listen("0.0.0.0:7070");
         c->set_principals_file("p");
       },
       "without --tls-cert-file, --tls-key-file;"},
      {[](auto* c) { c->set_tls_cert_file("c"); }, "--tls-key-file: wanted both"},
      {[](auto* c) { c->set_tls_key_file("k"); }, "--tls-cert-file: wanted both"},
      {[](auto* c) { c->set_tls_client_ca_file("ca"); }, "--tls-client-ca-file: wanted"},
      {[](auto* c) { c->set_tls_crl_dir("crls"); }, "--tls-crl-dir: wanted"},
      {[](auto* c) {
         c->set_jwks_file("k");
         c->set_jwt_audience("a");
       },
       "--jwt-issuer: wanted"},
      {[](auto* c) {
         c->set_jwks_file("k");
         c->set_jwt_issuer("i");
       },
       "--jwt-audience: wanted"},
      {[](auto* c) { c->set_credentials_reload_s(0); }, "--credentials-reload-s: wanted 1 to"},
      {[](auto* c) { c->set_admin_listen("7072"); }, "--admin-listen: wanted an address"},
      {[](auto* c) { c->set_admin_listen("0.0.0.0:7072"); }, "without --admin-plaintext"},
      {[](auto* c) { c->add_admin_hosts("https://a.example"); },
       "--admin-hosts: wanted a host name"},
      {[](auto* c) { c->set_lease_ttl_s(1); }, "--lease-ttl-s: wanted 3 to 3600, got 1"},
      {[](auto* c) { c->set_heartbeat_interval_s(11); }, "--heartbeat-interval-s: wanted 1 to 10"},
      {[](auto* c) { c->set_sweep_interval_s(11); }, "--sweep-interval-s: wanted 1 to 10"},
      {[](auto* c) { c->set_drain_timeout_s(0); }, "--drain-timeout-s"},
      {[](auto* c) { c->set_max_connection_age_s(0); }, "--max-connection-age-s"},
      {[](auto* c) { c->set_call_memory_bytes(1 << 20); }, "--call-memory-bytes"},
      {[](auto* c) { c->set_max_blob_bytes(0); }, "--max-blob-bytes"},
      {[](auto* c) { c->set_embedded_slots(0); }, "--embedded-slots: wanted 1 to 256, got 0"},
      {[](auto* c) { c->add_local_roots("/no/such/folder"); },
       "--local-roots: wanted a readable folder at '/no/such/folder'"},
      {[](auto* c) { c->add_local_roots("models"); }, "--local-roots: "},
      {[](auto* c) { c->set_job_store("mysql://me@db/jobs"); }, "--job-store: wanted postgresql"},
      {[](auto* c) { c->set_job_store("postgresql://me:pw@db/jobs"); }, "holds a password"},
      {[](auto* c) { c->set_job_store_connections(0); }, "--job-store-connections: wanted 1 to"},
      {[](auto* c) { c->set_garbage_collection_interval_s(-1); },
       "--garbage-collection-interval-s: wanted 0 to"},
      {[](auto* c) {
         c->set_blob_dir("/uploads");
         c->set_blob_root("s3://bucket/uploads");
       },
       "--blob-root: wanted one of it and --blob-dir"},
      {[](auto* c) { c->set_log_format("xml"); }, "wanted text or json, got 'xml'"},
      {[](auto* c) { c->set_log_level("loud"); }, "got 'loud'"},
  };
  for (const Case& test : cases) {
    v1::ServerConfig config = Defaults();
    test.damage(&config);
    const absl::Status status = FinishServerConfig(&config);
    EXPECT_FALSE(status.ok()) << test.wanted;
    EXPECT_NE(status.message().find(test.wanted), std::string::npos) << status;
  }
}

TEST(ServerConfig, BeyondLoopbackWithTlsAndAuthentication) {
  v1::ServerConfig config = Defaults();
  config.set_listen("0.0.0.0:7070");
  config.set_worker_listen("[::]:7071");
  config.set_admin_listen("0.0.0.0:7072");
  config.set_admin_plaintext(true);
  config.set_tls_cert_file("c");
  config.set_tls_key_file("k");
  config.set_principals_file("p");
  EXPECT_TRUE(FinishServerConfig(&config).ok()) << FinishServerConfig(&config);
  EXPECT_TRUE(AuthenticationConfigured(config));
  config.clear_principals_file();
  config.set_tls_client_ca_file("ca");
  EXPECT_TRUE(FinishServerConfig(&config).ok());
}

}  // namespace
}  // namespace quantry::server
