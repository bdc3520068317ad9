/* The protocol of leases: one job, two workers, two servers on one store, a
 * network that loses, delays, reorders and repeats. spin walks every order.
 *
 * What is modelled: claim (idempotent by acquire_id), renewal with numbered
 * events, lease expiry, limits, checkpointed retry, release, failure, commit,
 * cancel and retry by the client (repeated under one request id), crash and
 * restart of workers, crash of a server between its commit and its reply.
 * A transaction of the store is one atomic step, as JobStore promises. Time is
 * not modelled: a lease may lapse whenever it likes, which covers every clock.
 *
 * The promise (docs/reliability.md), as assertions where the store writes:
 *   - every change of state is in the table (transitions.pml);
 *   - the epoch grows with each claim, and no two claims share one;
 *   - only the newest attempt's worker changes anything;
 *   - at most one artifact, of files that one attempt wrote completely;
 *   - a cancel that was acknowledged is never followed by success;
 *   - an attempt's events are stored in order, each once;
 *   - nobody is told LEASE_LOST about the commit that made the artifact;
 *   - one request id queues a job again at most once.
 * With -DLIVE faults have a budget, and LTL says that every job ends and every
 * acknowledged cancel does.
 *
 * Each guard of the store can be left out, by its name in the environment of
 * the search (WITHOUT=EPOCH_GUARD ./pan); each of them must then break an
 * assertion. test_model.py runs all of this.
 */
#include "transitions.pml"

#ifndef EPOCHS
#define EPOCHS 3 /* claims at most; the model's bound, not the product's */
#endif
#ifndef RETRIES
#define RETRIES 1 /* by the client */
#endif
#ifndef EVENTS
#define EVENTS 1 /* an attempt has */
#endif
#ifndef FAULTS
#define FAULTS 2 /* with LIVE: lapses of living workers, crashes, losses */
#endif
#define NOBODY 9

/* The guard that is left out. Never changes. */
mtype = { EPOCH_GUARD, OWNER_ALONE, EPOCH_PREFIX, EPOCH_KEPT, EVENT_NUMBERS, CANCEL_WINS, REPEATED_COMMIT, REQUEST_ID, REQUEST_IDS };
mtype without = 0;
c_code {
  static const char* const kGuards[] = {"REQUEST_IDS", "REQUEST_ID", "REPEATED_COMMIT", "CANCEL_WINS", "EVENT_NUMBERS",
                                        "EPOCH_KEPT", "EPOCH_PREFIX", "OWNER_ALONE", "EPOCH_GUARD"};
  /* spin numbers the names of an mtype from its last one, 1. */
  static int GuardOfEnvironment(void) {
    const char* name = getenv("WITHOUT");
    int i;
    if (name == NULL || *name == 0) return 0;
    for (i = 0; i < 9; ++i) {
      if (strcmp(name, kGuards[i]) == 0) return i + 1;
    }
    fprintf(stderr, "WITHOUT: there is no guard %s", name);
    exit(2);
  }
}

mtype = { ACQUIRE, BEAT, COMPLETE, FAIL, RELEASE };
mtype = { GRANT, CONTINUE, STOP, OK, LOST, NOTHING };

/* The store. */
byte state = QUEUED;
byte epoch = 0;
byte owner = NOBODY;
byte acquired_by = 0; /* acquire_id of the lease */
byte next_event = 0;  /* of the attempt */
byte artifact = 0;    /* epoch whose files are visible; 0 = none */
byte last_retry = 0;  /* its request id */
bool retry_made[RETRIES + 1]; /* by request id */

/* Storage: what lies below the prefix of an epoch. */
byte writer[EPOCHS + 1];  /* worker + 1; 0 = nobody yet */
bool whole[EPOCHS + 1];   /* all files, manifest.json last */

/* Known to the model alone. */
byte granted_to[EPOCHS + 1]; /* worker + 1 */
bool cancel_acknowledged = false;
byte retried[RETRIES + 1] = 0;
#ifdef LIVE
byte faults = FAULTS;
bool holding[2] = false; /* the worker has the job, or will when its reply is there */
byte in_flight[2] = 0;   /* a worker's requests that servers have */
byte asked[2] = 0;       /* the call a worker waits for */
#define NAME(call, key) (call == ACQUIRE -> 100 + key : key)
#define MAY_FAIL (faults > 0)
#define FAULT faults--
#define TIMED_OUT (in_flight[me] == 0)
#define NOTE(what_the_live_model_needs) what_the_live_model_needs
#else
#define MAY_FAIL true
#define FAULT skip
#define TIMED_OUT true
#define NOTE(what_the_live_model_needs) skip
#endif

/* An attempt writes below a prefix of its own. */
#define PREFIX(e) (without == EPOCH_PREFIX -> 1 : e)

/* What is on its way is in the hands of a server: it keeps a request for as
 * long as it likes, which is the network's delay, and two of them reorder. A
 * worker that asks again while the first request is on its way repeats it. */
chan net = [0] of { mtype, byte, byte, byte }; /* call, worker, acquire id or epoch, events sent */
chan answer[2] = [0] of { mtype, byte, mtype, byte }; /* call, key, what, epoch */

#define LEASED (state == RUNNING || state == CANCELLING)
#define ENDED (state == SUCCEEDED || state == FAILED || state == CANCELLED)

inline move(to) {
  next = to;
  assert(ALLOWED);
  state = to;
}

/* CheckLeaseRow of server/jobs/rules.cc. */
#define HOLDS(e, w) (LEASED && (without == EPOCH_GUARD || \
                                (owner == w && (without == OWNER_ALONE || epoch == e))))

/* What a write that was let through must be: of the newest claim's worker. */
inline check_writer(e, w) {
  assert(e == epoch && granted_to[e] == w + 1);
}

inline lose() {
  if
  :: state == CANCELLING -> move(CANCELLED)
  :: state == RUNNING -> if :: move(QUEUED) :: move(FAILED) /* POISON_JOB */ fi
  fi;
  owner = NOBODY;
  acquired_by = 0;
}

/* Numbers first..last-1 arrive; those not stored yet are. NewEvents of rules.cc. */
inline store_events(last) {
  if
  :: without == EVENT_NUMBERS -> next_event = next_event + last
  :: without != EVENT_NUMBERS && last > next_event -> next_event = last
  :: else
  fi;
  assert(next_event <= EVENTS);
}

inline acquire(w, id) {
  if
  :: LEASED && owner == w && acquired_by == id ->
     what = GRANT;
     value = epoch
  :: state == QUEUED && epoch < EPOCHS ->
     move(RUNNING);
     epoch++;
     assert(granted_to[epoch] == 0);
     granted_to[epoch] = w + 1;
     owner = w;
     acquired_by = id;
     next_event = 0;
     NOTE(holding[w] = true);
     what = GRANT;
     value = epoch
  :: else -> what = NOTHING
  fi
}

inline beat(w, e, last) {
  if
  :: !HOLDS(e, w) -> what = LOST
  :: else ->
     check_writer(e, w);
     store_events(last);
     if :: state == CANCELLING -> what = STOP :: else -> what = CONTINUE fi
  fi
}

inline complete(w, e, last) {
  if
  :: artifact == e && without != REPEATED_COMMIT -> what = OK /* its reply was lost */
  :: !HOLDS(e, w) && !(artifact == e && without != REPEATED_COMMIT) ->
     assert(artifact != e);
     what = LOST
  :: artifact != e && HOLDS(e, w) ->
     check_writer(e, w);
     store_events(last);
     if
     :: state == CANCELLING && without != CANCEL_WINS ->
        move(CANCELLED);
        what = LOST
     :: else ->
        assert(artifact == 0 && whole[PREFIX(e)] && writer[PREFIX(e)] == w + 1);
        assert(!cancel_acknowledged);
        artifact = e;
        move(SUCCEEDED);
        what = OK
     fi;
     owner = NOBODY
  fi
}

inline fail(w, e, last) {
  if
  :: !HOLDS(e, w) -> what = LOST
  :: else ->
     check_writer(e, w);
     store_events(last);
     lose();
     what = OK
  fi
}

inline release(w, e) {
  if
  :: !HOLDS(e, w) -> what = LOST
  :: else ->
     check_writer(e, w);
     if
     :: state == CANCELLING -> move(CANCELLED)
     :: else -> move(QUEUED)
     fi;
     owner = NOBODY;
     what = OK
  fi
}

/* Stateless: one request, one transaction, one reply. The reply comes at once
 * or never: a worker may wait as long as it likes before it acts on it. */
proctype Server() {
  mtype call, what;
  byte w, key, last, value, next;
end:
  do
  :: atomic { net?call, w, key, last; NOTE(in_flight[w]++) };
     atomic {
       if
       :: MAY_FAIL -> FAULT /* never arrived, or the server died before */
       :: true ->
          if
          :: call == ACQUIRE -> acquire(w, key)
          :: call == BEAT -> beat(w, key, last)
          :: call == COMPLETE -> complete(w, key, last)
          :: call == FAIL -> fail(w, key, last)
          :: call == RELEASE -> release(w, key)
          fi;
          next = 0;
          if
          :: what == NOTHING
          :: else ->
             if
             :: answer[w]!call, key, what, value
             :: MAY_FAIL -> FAULT /* lost, or the server died after */
#ifdef LIVE
             :: asked[w] != NAME(call, key) /* nobody waits for it any more */
#endif
             fi
          fi
       fi;
       NOTE(in_flight[w]--);
       call = 0; w = 0; key = 0; last = 0; what = 0; value = 0
     }
  od
}

/* One try, within a loop that the answer in `what` ends. */
inline try(call, key, last, result) {
  net!call, me, key, last ->
  if
  :: answer[me]?eval(call), eval(key), what, result -> break
  :: TIMED_OUT /* the same again */
  fi
}

inline ask_for_a_job(id, result) {
  NOTE(asked[me] = NAME(ACQUIRE, id));
  do
  :: try(ACQUIRE, id, 0, result)
  od;
  NOTE(asked[me] = 0)
}

/* A worker whose own clock says that its lease is over stops asking. */
inline ask(call, key, last, result) {
  NOTE(asked[me] = NAME(call, key));
  do
  :: try(call, key, last, result)
  :: atomic { MAY_FAIL -> FAULT; what = LOST; break } /* gave up */
  od;
  NOTE(asked[me] = 0)
}

proctype Worker(byte me) {
  mtype what;
  byte id = 0, mine = 0, sent = 0, ignored, next;

idle:
  atomic { NOTE(holding[me] = false); mine = 0; sent = 0; what = 0; id++ }
  if
  :: id > EPOCHS -> goto gone
  :: id <= EPOCHS ->
     (me == 0 || epoch > 0); /* they are alike: call the first one that gets the job 0 */
     ask_for_a_job(id, mine)
  fi;

  /* The engine writes below the epoch's own prefix. */
  atomic {
    what = 0;
    assert(writer[PREFIX(mine)] == 0 || writer[PREFIX(mine)] == me + 1);
    writer[PREFIX(mine)] = me + 1
  }
  do
  :: what != STOP && sent < EVENTS -> atomic { sent++; what = 0 }
  :: what == 0 -> /* one beat between two events is enough */
     ask(BEAT, mine, sent, ignored);
     if
     :: what == LOST -> goto idle
     :: what != LOST
     fi
  :: what == STOP ->
     ask(FAIL, mine, sent, ignored);
     goto idle
  :: what != STOP && sent == EVENTS ->
     whole[PREFIX(mine)] = true;
     ask(COMPLETE, mine, sent, ignored);
     goto idle
#ifndef FEW_CALLS /* for the store both are what a lapsed lease is, told */
  :: atomic { what != STOP && MAY_FAIL -> FAULT }; ask(RELEASE, mine, sent, ignored); goto idle
  :: atomic { what != STOP && MAY_FAIL -> FAULT }; ask(FAIL, mine, sent, ignored); goto idle
#endif
  :: atomic { MAY_FAIL -> FAULT }; goto crash
  od;

crash: /* killed, and started again at once or never */
  if
  :: atomic {
       if
       :: LEASED && owner == me -> lose() /* RegisterWorker, another incarnation */
       :: else
       fi;
       next = 0
     };
     goto idle
#ifndef LIVE
  :: true
#endif
  fi;
gone:
  NOTE(holding[me] = false)
}

/* Leases, limits. Any server's, at any time. */
proctype Sweeper() {
  byte next;
end:
  do
#ifdef LIVE
  :: atomic { LEASED && !holding[owner] -> lose(); next = 0 }
#endif
  :: atomic { LEASED && MAY_FAIL -> FAULT; lose(); next = 0 }
  :: atomic { (state == QUEUED && MAY_FAIL) -> FAULT; move(FAILED); next = 0 }
  :: atomic { state == RUNNING && MAY_FAIL -> FAULT; move(FAILED); owner = NOBODY; next = 0 }
  od
}

/* Whether a request id is known. REQUEST_IDS left out: only the last one is kept. */
#define REPEAT(id) (without != REQUEST_ID && (without == REQUEST_IDS -> id == last_retry : retry_made[id]))

inline retry(id) {
  if
  :: !REPEAT(id) && (state == FAILED || state == CANCELLED) && artifact == 0 ->
     move(QUEUED);
     if :: without == EPOCH_KEPT -> epoch = 0 :: else fi;
     retried[id]++;
     assert(retried[id] == 1);
     retry_made[id] = true;
     last_retry = id;
     cancel_acknowledged = false
  :: else
  fi
}

/* Cancels and retries; every call may be made again, however late: its first
 * reply lost, or the network slow. */
proctype Client() {
  byte next, number = 0;
end:
  do
  :: atomic { state == QUEUED -> move(CANCELLED); cancel_acknowledged = true; next = 0 }
  :: atomic { state == RUNNING -> move(CANCELLING); cancel_acknowledged = true; next = 0 }
  :: atomic { number < RETRIES && ENDED -> number++ } /* a new request id */
  :: atomic { number >= 1 && ENDED -> retry(1); next = 0 }
#if RETRIES > 1
  :: atomic { number >= 2 && ENDED -> retry(2); next = 0 }
#endif
  :: break
  od
}

init {
  atomic {
    c_code { now.without = GuardOfEnvironment(); };
    run Server();
    run Server();
    run Worker(0);
    run Worker(1);
    run Sweeper();
    run Client()
  }
}

#ifdef LIVE
ltl job_ends { <> [] ENDED }
ltl cancel_ends { [] (cancel_acknowledged -> <> (state == CANCELLED || !cancel_acknowledged)) }
#endif
