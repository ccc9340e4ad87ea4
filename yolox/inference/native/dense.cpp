// Convolutions that sum over all channels.
#include "portable.h"

namespace native {

void dense(const Step& s, const Image& image, Team team) {
  Range rows = team.share(s.out.height);
  for (long c = 0; c < s.out.channels; c += V) dense_plainly(s, image, rows, c);
}

}  // namespace native
