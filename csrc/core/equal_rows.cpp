#include "core/equal_rows.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "core/parallel.h"

namespace fastshape::cpu {
namespace {

constexpr int64_t kBlock = 128;  // rows whose places in the table are fetched ahead together

inline uint64_t hash_row(const uint32_t* row, int num_words) {
  uint64_t hash = 0;
  for (int i = 0; i < num_words; ++i) {
    hash = (hash ^ row[i]) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 29;
  }
  hash *= 0xBF58476D1CE4E5B9u;
  return hash ^ (hash >> 32);
}

// The rows of one thread are those whose hash falls into its share, so that equal rows meet in one
// table, in ascending order, whatever the number of threads.
class Share {
 public:
  Share(int rank, int threads) : rank_(rank), threads_(threads) {}
  bool has(uint64_t hash) const {
    return static_cast<int>((hash >> 48) * static_cast<uint64_t>(threads_) >> 16) == rank_;
  }

 private:
  const int rank_, threads_;
};

void find_first(const uint32_t* rows, int64_t num_rows, int num_words, Share share,
                int64_t* first) {
  int64_t mine = 0;
  for (int64_t i = 0; i < num_rows; ++i)
    mine += share.has(hash_row(rows + i * num_words, num_words));
  uint64_t size = 16;
  while (size < 2 * static_cast<uint64_t>(mine)) size *= 2;
  std::vector<uint32_t> table(size, 0);  // row number + 1, 0 where free
  const uint64_t mask = size - 1;
  const size_t bytes = sizeof(uint32_t) * static_cast<size_t>(num_words);

  int64_t block[kBlock];
  uint64_t places[kBlock];
  for (int64_t begin = 0; begin < num_rows; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, num_rows);
    int count = 0;
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t hash = hash_row(rows + i * num_words, num_words);
      if (!share.has(hash)) continue;
      block[count] = i;
      places[count] = hash & mask;
      __builtin_prefetch(&table[places[count]], 1);
      ++count;
    }
    for (int k = 0; k < count; ++k) {
      const int64_t i = block[k];
      uint64_t place = places[k];
      for (;; place = (place + 1) & mask) {
        const uint32_t entry = table[place];
        if (entry == 0) {
          table[place] = static_cast<uint32_t>(i) + 1;
          first[i] = i;
          break;
        }
        const int64_t other = static_cast<int64_t>(entry) - 1;
        if (std::memcmp(rows + other * num_words, rows + i * num_words, bytes) == 0) {
          first[i] = other;
          break;
        }
      }
    }
  }
}

}  // namespace

void first_equal_rows(const uint32_t* rows, int64_t num_rows, int num_words, int64_t* first) {
  const int threads = num_rows < 1 << 14 ? 1 : num_threads();
  parallel_team(threads, [&](int rank, int count) {
    find_first(rows, num_rows, num_words, Share(rank, count), first);
  });
}

EdgeCounts count_edges(const int32_t* faces, int64_t num_faces, int64_t num_vertices) {
  // Every edge into the bucket of its lower vertex: the upper one, and which way it runs.
  std::vector<int64_t> start(static_cast<size_t>(num_vertices) + 1, 0);
  const auto for_each_edge = [&](auto&& visit) {
    for (int64_t f = 0; f < num_faces; ++f) {
      const int32_t* face = faces + 3 * f;
      for (int corner = 0; corner < 3; ++corner) {
        const int32_t from = face[corner], to = face[corner == 2 ? 0 : corner + 1];
        const auto [low, high] = std::minmax(from, to);
        visit(low, static_cast<uint32_t>(high) * 2 + (from > to));
      }
    }
  };
  for_each_edge([&](int32_t low, uint32_t) { ++start[static_cast<size_t>(low) + 1]; });
  for (int64_t v = 0; v < num_vertices; ++v) start[v + 1] += start[v];
  std::vector<uint32_t> edges(static_cast<size_t>(3 * num_faces));
  for_each_edge([&](int32_t low, uint32_t edge) { edges[start[low]++] = edge; });
  // start[v] is now the end of bucket v.
  std::atomic<int64_t> open{0}, crowded{0}, contrary{0};
  parallel_for(num_vertices, 1 << 16, [&](int64_t begin, int64_t end) {
    int64_t ones = 0, many = 0, alike = 0;
    for (int64_t v = begin; v < end; ++v) {
      uint32_t* first = edges.data() + (v == 0 ? 0 : start[v - 1]);
      uint32_t* last = edges.data() + start[v];
      std::sort(first, last);
      for (const uint32_t *edge = first, *next; edge != last; edge = next) {
        next = edge + 1;
        while (next != last && *next >> 1 == *edge >> 1) ++next;
        const auto uses = next - edge;
        ones += uses == 1;
        many += uses > 2;
        alike += uses == 2 && edge[0] == edge[1];
      }
    }
    open += ones;
    crowded += many;
    contrary += alike;
  });
  return {open, crowded, contrary};
}

}  // namespace fastshape::cpu
