// One image computed by several threads, none of which waits long for another that has lost its core.
//
// Steps that need not wait for each other (stages.py) are cut into pieces of rows. A thread takes those of its own
// share first, then those of the others that nobody has taken. When one has been missed for long, the machine is called
// crowded for a while: each step stands alone, pieces are smaller, the others take over what a thread does not finish,
// and therefore each computes into memory of its own and copies the rows to their place in the end, unless the piece
// was taken from it: whoever comes late does no harm.
#pragma once
#include "steps.h"
#include "threads.h"
#include <memory>

namespace native {

// A step, and the borders that are filled beside it.
struct Stage {
  const Step* borders;
  long num_borders;
  const Step* step;
  long index;        // of the step in the program
  double ns;         // an estimate of one thread's time
};

// Stages first ... last (not included), of which a thread computes its rows one after another.
struct Section {
  long first, last;
  double ns;
  bool takes_over;   // whether late threads may still read what it reads: nothing that belongs to the caller
};

// The rows of a piece in memory: `rows` times `pixels` runs of bytes.
struct Block {
  int64_t at, row, rows, pixel, pixels, bytes;  // `at`: from the beginning of the arena or of the result
};

// What is the same for all images.
struct Plan {
  std::vector<Stage> stages;
  std::vector<Section> sections[2];  // as few as there can be, and one for each stage
  int64_t arena_bytes, inputs = 0, outputs = 0;
  std::atomic<int64_t> crowded_until{0};  // other processes want the cores: ns

  Plan(const Step* steps, long count, int64_t arena_bytes);
  bool crowded() const { return now_ns() < crowded_until.load(std::memory_order_relaxed); }
  void note_crowd() { crowded_until.store(now_ns() + 200000000, std::memory_order_relaxed); }
};

// Memory of one thread for the rows of a piece; null where there is none.
uint8_t* own_memory(int64_t bytes);

class Team {
  // A piece's state is the epoch, the member that took it, and a phase; one of an earlier epoch is free.
  enum Phase : uint64_t { TAKEN = 1, TAKEN_IN_PLACE = 2, COPIED = 3, DONE = 4 };
  struct alignas(64) Line {
    std::atomic<uint64_t> piece[8];
  };

  Plan& plan;
  const long size;
  std::vector<long> first[2], pieces[2];  // of each section; in larger pieces, and in smaller ones
  std::unique_ptr<Line[]> lines;
  std::atomic<uint64_t> progress{0};  // the epoch and the section that threads may begin with
  Signal moved;

  static uint64_t mark(uint64_t epoch, long member, Phase phase) { return epoch << 16 | uint64_t(member) << 4 | phase; }
  const Section& section(long i, uint64_t epoch) const { return plan.sections[is_apart(epoch)][i]; }
  long pieces_in(long i, uint64_t epoch) const { return pieces[is_apart(epoch)][i]; }
  std::atomic<uint64_t>& state(long i, long piece, uint64_t epoch) {
    return lines[first[is_apart(epoch)][i] + piece / 8].piece[piece % 8];
  }

  void in_place(const Stage& stage, long piece, long count) const;
  bool elsewhere(const Stage& stage, long piece, long count, std::atomic<uint64_t>& state, uint64_t taken);
  void compute(long i, long piece, long member, uint64_t epoch);
  bool take(long i, long member, uint64_t epoch);
  bool take_over(long i, long member, uint64_t epoch);
  bool finish(long i, long member, uint64_t epoch);

 public:
  Image image{};

  Team(Plan& plan, long size);
  // Returns when the epoch's image is done. Epochs grow; their lowest bits are those of `epoch_bits`.
  void work(long member, uint64_t epoch, double* seconds);
  static uint64_t epoch_bits(bool crowded, bool timed) { return uint64_t(timed) << 1 | crowded; }
  static bool is_crowded(uint64_t epoch) { return epoch & 1; }
  static bool is_apart(uint64_t epoch) { return epoch & 3; }  // in sections of one stage
};

}  // namespace native
