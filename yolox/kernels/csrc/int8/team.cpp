#include "team.h"
#include <cstdlib>

namespace native {

namespace {

void execute(const Step& step, const Image& image, Range rows) {
  static Work* const work[] = {border, pack, dense, depthwise, pool, upsample, add, unary, arithmetic, copy,
                               average, multiply, resize};
  work[step.kind](step, image, rows);
}

long rows_of(const Step& s) {
  switch (s.kind) {
    case BORDER: return s.out.height + 2 * s.padding;
    case UNARY:
    case COPY: return s.left.rows;
    case ARITHMETIC: return s.result.rows;
    default: return s.out.height;
  }
}

bool writes_matrix(const Step& s) {
  return s.kind == UNARY || s.kind == COPY || s.kind == ARITHMETIC || s.to_matrix;
}

Range share(long count, long piece, long pieces) { return {count * piece / pieces, count * (piece + 1) / pieces}; }

Block block_of(const Step& s, Range rows) {
  const long count = rows.last - rows.first;
  if (writes_matrix(s)) {
    const bool copies = s.kind == UNARY || s.kind == COPY;
    const long wide = copies ? s.left.columns : s.kind == ARITHMETIC ? s.columns : s.out.channels;
    const long each = s.to_matrix ? s.out.width : 1;  // rows of the matrix for a row of pixels
    const long row = s.result.columns * 4, first = s.first_row + rows.first * each;
    return {first * row + s.first_column * 4, row, count * each, 0, 1, wide * 4};
  }
  const Feature& out = s.out;
  const int64_t at = out.at + rows.first * out.row;
  if (out.room == out.pixel) return {at, out.row, count, 0, 1, out.width * out.pixel};
  return {at, out.row, count, out.pixel, out.width, out.room};
}

int64_t extent(const Block& b) { return b.row * b.rows; }

inline void copy_bytes(const uint8_t* from, uint8_t* to, int64_t bytes) {
  if (bytes > 256 || bytes % 16) {
    std::memcpy(to, from, bytes);
    return;
  }
  for (int64_t i = 0; i < bytes; i += 16) std::memcpy(to + i, from + i, 16);  // a call would take longer
}

void copy_block(const Block& b, const uint8_t* from, uint8_t* to) {
  for (int64_t y = 0; y < b.rows; ++y)
    for (int64_t x = 0; x < b.pixels; ++x) {
      const int64_t at = y * b.row + x * b.pixel;
      copy_bytes(from + at, to + at, b.bytes);
    }
}

// Rates of one core in a quiet machine, roughly; they only decide how finely steps are cut.
double estimated_ns(const Step& s) {
  const double pixels = double(s.out.height) * s.out.width * s.out.channels, taps = double(s.height) * s.width;
  switch (s.kind) {
    case DENSE: return pixels * taps * s.in.channels / 150;
    case DEPTHWISE: return pixels * taps / 40;
    case UNARY: return double(s.left.rows) * s.left.columns;
    case COPY: return double(s.left.rows) * s.left.columns / 4;
    case ARITHMETIC: return double(s.result.rows) * s.columns;
    case POOL:
    case AVERAGE: return pixels * taps / 15;
    default: return pixels / 10;
  }
}

long weight_bytes(const Step& s) { return s.kind == DENSE ? s.out.channels * s.in.channels * s.height * s.width : 0; }

constexpr int64_t LOST = 300000;  // ns without a core after which a machine is crowded: not those of an interrupt
constexpr double LEAST = 4000, PIECE = 30000;  // ns of a step that is cut at all; of a piece

// One for each thread, or a multiple, so that they end together; each piece prepares and reads all weights again.
long pieces_of(const Plan& plan, const Section& section, long threads, bool finely) {
  if (section.ns < LEAST) return 1;
  double piece = PIECE;
  for (long i = section.first; i < section.last; ++i)
    piece = std::max(piece, 0.5 * weight_bytes(*plan.stages[i].step));
  const long each = finely ? std::min(std::max(long(section.ns / threads / piece + 0.5), 1L), 16L) : 1;
  return std::min(each * threads, rows_of(*plan.stages[section.first].step));
}

}  // namespace

Plan::Plan(const Step* steps, long count, int64_t arena_bytes) : arena_bytes(arena_bytes) {
  for (long i = 0, first = 0; i < count; ++i) {
    if (steps[i].kind == BORDER) continue;
    const Step& s = steps[i];
    const bool of_output = s.left.place == OUTPUT || s.right.place == OUTPUT;
    const bool callers = s.kind == PACK || (writes_matrix(s) && !s.to_matrix && of_output);
    const long at = stages.size();
    stages.push_back({steps + first, i - first, &s, i, estimated_ns(s)});
    for (auto& list : sections) list.push_back({at, at + 1, stages.back().ns, !callers});
    if (s.joined) {
      sections[0].pop_back();
      sections[0].back().last = at + 1;
      sections[0].back().ns += stages.back().ns;
    }
    first = i + 1;
  }
}

uint8_t* own_memory(int64_t bytes) {
  struct Memory {
    uint8_t* p = nullptr;
    int64_t bytes = 0;
    ~Memory() { std::free(p); }
  };
  static thread_local Memory mine;
  if (mine.bytes < bytes) {
    std::free(mine.p);
    mine.p = (uint8_t*)std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    mine.bytes = mine.p ? bytes : 0;
  }
  return mine.p;
}

Team::Team(Plan& plan, long size) : plan(plan), size(size) {
  long most = 0;
  for (bool apart : {false, true}) {
    long used = 0;
    for (const Section& section : plan.sections[apart]) {
      first[apart].push_back(used);
      pieces[apart].push_back(pieces_of(plan, section, size, apart));
      used += (pieces[apart].back() + 7) / 8;
    }
    most = std::max(most, used);
  }
  lines.reset(new Line[most]());
}

static void fill_borders(const Stage& stage, const Image& image, long piece, long count) {
  for (long i = 0; i < stage.num_borders; ++i) {
    const Step& border = stage.borders[i];
    execute(border, image, share(rows_of(border), piece, count));
  }
}

void Team::in_place(const Stage& stage, long piece, long count) const {
  const Step& s = *stage.step;
  Image own = image;
  own.out = own.arena;
  if (writes_matrix(s)) own.result = floats(s.result, own);
  execute(s, own, share(rows_of(s), piece, count));
  fill_borders(stage, own, piece, count);
}

// Computes a piece into memory of the thread's own and copies it; false, and nothing is copied, if it was taken over.
bool Team::elsewhere(const Stage& stage, long piece, long count, std::atomic<uint64_t>& state, uint64_t taken) {
  const Step& s = *stage.step;
  const Range rows = share(rows_of(s), piece, count);
  const Block block = block_of(s, rows);
  uint8_t* memory = own_memory(extent(block) + 128);
  Image own = image;
  if (memory) {
    memory += block.at % 64;
    if (writes_matrix(s)) own.result = (float*)(memory - block.at);
    else own.out = memory - block.at;
    execute(s, own, rows);
  }
  if (!state.compare_exchange_strong(taken, (taken & ~uint64_t(15)) | COPIED)) return false;  // someone else does it
  if (!memory) {
    in_place(stage, piece, count);
    return true;
  }
  own.out = own.arena;
  uint8_t* to = writes_matrix(s) ? (uint8_t*)floats(s.result, own) : own.arena;
  copy_block(block, memory, to + block.at);
  fill_borders(stage, own, piece, count);
  return true;
}

void Team::compute(long i, long piece, long member, uint64_t epoch) {
  const Section& all = section(i, epoch);
  const long count = pieces_in(i, epoch);
  std::atomic<uint64_t>& mine = state(i, piece, epoch);
  if (is_crowded(epoch) && all.takes_over) {
    if (!elsewhere(plan.stages[all.first], piece, count, mine, mark(epoch, member, TAKEN))) return;
  } else {
    for (long stage = all.first; stage < all.last; ++stage) in_place(plan.stages[stage], piece, count);
  }
  mine.store(mark(epoch, member, DONE), std::memory_order_release);
}

// Takes pieces until there is none left; false when the epoch is over.
bool Team::take(long i, long member, uint64_t epoch) {
  const long count = pieces_in(i, epoch), start = member * count / size;
  for (long n = 0; n < count; ++n) {
    const long piece = start + n < count ? start + n : start + n - count;
    std::atomic<uint64_t>& one = state(i, piece, epoch);
    uint64_t seen = one.load(std::memory_order_relaxed);
    if (seen >> 16 > epoch) return false;
    if (seen >> 16 == epoch) continue;
    const bool here = !is_crowded(epoch) || !section(i, epoch).takes_over;
    if (one.compare_exchange_strong(seen, mark(epoch, member, here ? TAKEN_IN_PLACE : TAKEN)))
      compute(i, piece, member, epoch);
    else if (seen >> 16 > epoch) return false;
  }
  return true;
}

// Takes a piece from a thread that has not come to its end; whether there was one.
bool Team::take_over(long i, long member, uint64_t epoch) {
  for (long piece = 0, count = pieces_in(i, epoch); piece < count; ++piece) {
    std::atomic<uint64_t>& one = state(i, piece, epoch);
    uint64_t seen = one.load(std::memory_order_relaxed);
    if (seen >> 16 != epoch || (seen & 15) != TAKEN) continue;
    if (!one.compare_exchange_strong(seen, mark(epoch, member, TAKEN))) continue;
    compute(i, piece, member, epoch);
    return true;
  }
  return false;
}

// Waits until all pieces are done, and does them where a thread is missed; false when the epoch is over.
bool Team::finish(long i, long member, uint64_t epoch) {
  const long count = pieces_in(i, epoch);
  const bool crowded = is_crowded(epoch);
  const int64_t patience = 20000 + 2 * int64_t(section(i, epoch).ns / count) + (crowded ? 0 : LOST);
  int64_t since = 0;
  for (;;) {
    const uint32_t seen = moved.value();
    bool all = true;
    for (long piece = 0; piece < count && all; ++piece) {
      const uint64_t now = state(i, piece, epoch).load(std::memory_order_acquire);
      if (now >> 16 > epoch) return false;
      all = now == mark(epoch, now >> 4 & 0xfff, DONE);
    }
    if (all) return true;
    if (since == 0) since = now_ns();
    for (int n = 0; n < 8; ++n) pause();
    if (now_ns() - since < patience) continue;
    plan.note_crowd();
    if (!take_over(i, member, epoch)) moved.sleep(seen, 200000);
    since = 0;
  }
}

void Team::work(long member, uint64_t epoch, double* seconds) {
  const uint64_t seen = progress.load(std::memory_order_acquire);
  const long count = plan.sections[is_apart(epoch)].size();
  for (long i = seen >> 16 == epoch ? seen & 0xffff : 0; i < count; ++i) {
    const int64_t start = seconds ? now_ns() : 0;
    const Section& all = section(i, epoch);
    if (size == 1) {
      for (long stage = all.first; stage < all.last; ++stage) in_place(plan.stages[stage], 0, 1);
    } else {
      if (!take(i, member, epoch) || !finish(i, member, epoch)) return;
      progress.store(epoch << 16 | uint64_t(i + 1), std::memory_order_release);
      moved.raise();
    }
    if (seconds) seconds[plan.stages[all.first].index] += (now_ns() - start) * 1e-9;
  }
}

}  // namespace native
