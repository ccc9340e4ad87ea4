// Convolutions of each channel on its own.
#include "portable.h"

namespace native {

void depthwise(const Step& s, const Image& image, Team team) {
  Range rows = team.share(s.out.height);
  for (long c = 0; c < s.out.channels; c += V) depthwise_plainly(s, image, rows, c);
}

}  // namespace native
