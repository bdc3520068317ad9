#include "server/auth/principal.h"

#include "gtest/gtest.h"

namespace quantry::server {
namespace {

TEST(Principal, RolesHaveNamesBothWays) {
  for (const Role role : {Role::kViewer, Role::kSubmitter, Role::kAdmin, Role::kWorker}) {
    EXPECT_EQ(*ParseRole(RoleName(role)), role);
  }
  EXPECT_FALSE(ParseRole("root").ok());
  EXPECT_FALSE(ParseRole("").ok());
}

TEST(Principal, WrongPartsAreNamed) {
  struct Case {
    const char *name, *role, *tenant, *wanted;
  };
  const Case cases[] = {
      {"", "viewer", "acme", "wanted a principal of 1 to 512 bytes"},
      {"ci", "operator", "acme", "wanted role viewer, submitter, admin or worker, got 'operator'"},
      {"ci", "viewer", "", "wanted a tenant"},
      {"ci", "viewer", "Acme", "wanted a tenant"},
      {"w", "worker", "acme", "workers serve all tenants"},
  };
  for (const Case& test : cases) {
    const auto principal = MakePrincipal(test.name, test.role, test.tenant);
    ASSERT_FALSE(principal.ok()) << test.wanted;
    EXPECT_NE(principal.status().message().find(test.wanted), std::string::npos)
        << principal.status();
  }
  EXPECT_TRUE(MakePrincipal("w", "worker", "")->all_tenants());
  EXPECT_TRUE(MakePrincipal("root", "admin", "*")->Serves("acme"));
  EXPECT_FALSE(MakePrincipal("ci", "admin", "acme")->Serves("acme2"));
}

TEST(Principal, SpiffeIds) {
  struct Case {
    const char *uri, *role, *tenant;  // role "" = refused
  };
  const Case cases[] = {
      {"spiffe://quantry/tenant/acme/role/viewer", "viewer", "acme"},
      {"spiffe://quantry/tenant/acme/role/submitter/name/ci", "submitter", "acme"},
      {"spiffe://quantry/role/worker", "worker", "*"},
      {"spiffe://quantry/role/worker/gpu-7", "worker", "*"},
      {"spiffe://quantry/role/admin", "admin", "*"},
      {"spiffe://other/role/admin", "", ""},
      {"spiffe://quantry/role", "", ""},
      {"spiffe://quantry/role/", "", ""},
      {"spiffe://quantry/tenant/acme", "", ""},
      {"spiffe://quantry/tenant//role/admin", "", ""},
      {"spiffe://quantry/tenant/*/role/admin", "", ""},
      {"spiffe://quantry/tenant/acme/role/worker", "", ""},
      {"spiffe://quantry//role/admin", "", ""},
      {"https://quantry/role/admin", "", ""},
      {"spiffe:/quantry/role/admin", "", ""},
      {"", "", ""},
  };
  for (const Case& test : cases) {
    const auto principal = PrincipalOfSpiffeId(test.uri, "quantry");
    ASSERT_EQ(principal.ok(), test.role[0] != '\0') << test.uri;
    if (!principal.ok()) continue;
    EXPECT_EQ(RoleName(principal->role), test.role) << test.uri;
    EXPECT_EQ(principal->tenant, test.tenant) << test.uri;
    EXPECT_EQ(principal->name, test.uri);
  }
}

}  // namespace
}  // namespace quantry::server
