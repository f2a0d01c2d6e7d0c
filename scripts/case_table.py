"""What the scripts that print tables of the 256 cases of a cell have in common."""

from __future__ import annotations


def entries(
    name: str, kind: str, case: str, comment: str, values: list[int], digits: int, a_line: int
) -> str:
    """A function of a case that looks it up in a table."""
    lines = [
        "      " + ", ".join(f"0x{v:0{digits}x}" for v in values[i : i + a_line])
        for i in range(0, len(values), a_line)
    ]
    body = ",\n".join(lines)
    return (
        f"// {comment}\nFASTSHAPE_HOST_DEVICE {kind} {name}(unsigned {case}) {{\n"
        f"  // clang-format off\n  static constexpr {kind} table[256] = {{\n{body}}};\n"
        f"  // clang-format on\n  return table[{case}];\n}}\n\n"
    )
