#pragma once

// The whole conformance suite of JobStore; include it in one test file of an
// implementation and instantiate JobStoreSuite, JobStoreTurns and JobStoreTwins there.
#include "tests/conformance/job_store_clock_cases.h"
#include "tests/conformance/job_store_fixture.h"
#include "tests/conformance/job_store_invariants.h"
#include "tests/conformance/job_store_race_cases.h"
#include "tests/conformance/job_store_sweep_cases.h"
#include "tests/conformance/job_store_tenant_cases.h"
#include "tests/conformance/job_store_turn_cases.h"
#include "tests/conformance/job_store_twin_cases.h"
#include "tests/conformance/job_store_worker_cases.h"
