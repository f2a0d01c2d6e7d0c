// Equal rows of a table, and what the edges of triangles are like: the two questions that reading a
// mesh asks of every face. On the host only: files are read there.
#pragma once

#include <cstdint>

namespace fastshape::cpu {

// rows: (num_rows, num_words), compared by their bits. first: for every row the number of the first
// row that is equal to it. Fewer than 2^32 - 1 rows.
void first_equal_rows(const uint32_t* rows, int64_t num_rows, int num_words, int64_t* first);

struct EdgeCounts {
  int64_t open;      // edges of one face
  int64_t crowded;   // of more than two
  int64_t contrary;  // of two that run through it the same way
};

// faces: (num_faces, 3), each with three different vertices below num_vertices <= 2^31.
EdgeCounts count_edges(const int32_t* faces, int64_t num_faces, int64_t num_vertices);

}  // namespace fastshape::cpu
