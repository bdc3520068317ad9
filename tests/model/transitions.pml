/* The states of a job and how they may change, as server/jobs/transitions.cc
 * has them; test_model.py compares the two row by row. Numbers: JobState of
 * server/jobs/job.h. */
#define QUEUED 1
#define RUNNING 2
#define CANCELLING 3
#define SUCCEEDED 4
#define FAILED 5
#define CANCELLED 6

#define ROW(from, to) (state == from && next == to)
#define ALLOWED ( \
  ROW(QUEUED, RUNNING) || \
  ROW(QUEUED, SUCCEEDED) || \
  ROW(QUEUED, CANCELLED) || \
  ROW(QUEUED, FAILED) || \
  ROW(RUNNING, QUEUED) || \
  ROW(RUNNING, CANCELLING) || \
  ROW(RUNNING, SUCCEEDED) || \
  ROW(RUNNING, FAILED) || \
  ROW(FAILED, QUEUED) || \
  ROW(CANCELLED, QUEUED) || \
  ROW(CANCELLING, CANCELLED) )
