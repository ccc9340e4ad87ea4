// Which cores helping threads run on, beside other processes that want them, too.
#pragma once

// Keeps the calling thread, which helps another one, away from a core until it is called with another core; -1 for
// none. False where the process has no other core. A thread that wakes is put onto the core where it ran before or the
// one that woke it, both its caller's, and would stay there beside the caller for as long as other processes have the
// other cores.
bool stay_off(int core);
