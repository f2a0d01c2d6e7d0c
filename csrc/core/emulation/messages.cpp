#include "core/emulation/messages.h"

#include <cstring>

#include "core/check.h"

namespace fastshape::emulation {

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::none:
      return "running";
    case Operation::syncthreads:
      return "__syncthreads";
    case Operation::syncthreads_or:
      return "__syncthreads_or";
    case Operation::syncthreads_and:
      return "__syncthreads_and";
    case Operation::syncthreads_count:
      return "__syncthreads_count";
    case Operation::cluster_wait:
      return "cluster_wait";
    case Operation::syncwarp:
      return "__syncwarp";
    case Operation::shuffle:
      return "a shuffle";
    case Operation::ballot:
      return "__ballot_sync";
    case Operation::any:
      return "__any_sync";
    case Operation::all:
      return "__all_sync";
    case Operation::reduce_add:
      return "__reduce_add_sync";
    case Operation::reduce_min_signed:
    case Operation::reduce_min_unsigned:
      return "__reduce_min_sync";
    case Operation::reduce_max_signed:
    case Operation::reduce_max_unsigned:
      return "__reduce_max_sync";
    case Operation::reduce_and:
      return "__reduce_and_sync";
    case Operation::reduce_or:
      return "__reduce_or_sync";
    case Operation::reduce_xor:
      return "__reduce_xor_sync";
    case Operation::match_any:
      return "__match_any_sync";
  }
  return "?";
}

std::string text(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return concatenate(slash != nullptr ? slash + 1 : site.file, ":", site.line);
}

std::string text(dim3 v) { return concatenate("(", v.x, ", ", v.y, ", ", v.z, ")"); }

std::string hexadecimal(uint32_t v) {
  std::ostringstream out;
  out << "0x" << std::hex << v;
  return out.str();
}

std::string ranges(const std::vector<unsigned>& numbers) {
  std::string out;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (!out.empty()) out += ", ";
    out += std::to_string(numbers[i]);
    if (last > i) out += "-" + std::to_string(numbers[last]);
    i = last + 1;
  }
  return out;
}

std::vector<unsigned> lanes_of(uint32_t mask) {
  std::vector<unsigned> lanes;
  for (; mask != 0; mask &= mask - 1) lanes.push_back(static_cast<unsigned>(__builtin_ctz(mask)));
  return lanes;
}

// ------------------------------------------------------------------------------------------------------

std::string Engine::describe(const Fiber& fiber) const {
  return concatenate("block ", text(fiber.block->index), ", thread ", text(fiber.thread));
}

// One line for all threads of a block that wait at the same place.
std::string Engine::where_threads_wait() const {
  struct Place {
    const Fiber* first;
    std::vector<unsigned> threads;
  };
  std::string out;
  int lines = 0;
  for (const Block& block : blocks_) {
    std::vector<Place> places;
    for (unsigned t = 0; t < threads_per_block_; ++t) {
      const Fiber& fiber = fibers_[(block.first_warp + t / kWarp) * kWarp + t % kWarp];
      if ((fiber.warp->alive >> fiber.lane & 1) == 0) continue;
      size_t i = 0;
      while (i < places.size() &&
             !(places[i].first->operation == fiber.operation &&
               places[i].first->spinning == fiber.spinning && places[i].first->mask == fiber.mask &&
               same(places[i].first->site, fiber.site))) {
        ++i;
      }
      if (i == places.size()) places.push_back({&fiber, {}});
      places[i].threads.push_back(t);
    }
    for (const Place& place : places) {
      if (++lines > 12) return out + "\n  ...";
      const Fiber& fiber = *place.first;
      out += concatenate("\n  block ", text(block.index), ", thread",
                         place.threads.size() > 1 ? "s " : " ", ranges(place.threads), ": ");
      if (fiber.operation == Operation::none && !fiber.spinning) {
        out += "ready to run";
        continue;
      }
      out += fiber.spinning ? "spin_wait" : name_of(fiber.operation);
      if (fiber.operation >= Operation::syncwarp) out += " with mask " + hexadecimal(fiber.mask);
      out += " (" + text(fiber.site) + ")";
    }
  }
  return out;
}

void Engine::deadlock() {
  stop(concatenate(launch_->name, ": deadlock: every thread waits for another",
                   where_threads_wait()));
}

}  // namespace fastshape::emulation
