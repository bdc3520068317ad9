// openat2 with RESOLVE_BENEATH for kernels before 5.6 and for containers that hide
// it: the path is gone through part by part, each opened without following a link
// from the folder before it, which stays open. What is looked at is what is used,
// whoever renames or swaps names meanwhile.
#pragma once

#include <string_view>

namespace quantry {

// Opens `path` below `folder_fd`. The open descriptor, or the negated errno:
// EXDEV for a path or link that leaves the folder (an absolute link always does),
// ELOOP for a link that may not be followed and for too many of them. `flags` are
// open(2)'s, without O_NOFOLLOW; O_CLOEXEC is added.
int WalkBeneath(int folder_fd, std::string_view path, int flags, bool follow_links, unsigned mode);

}  // namespace quantry
