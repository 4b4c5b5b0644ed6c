"""Reading disassembled kernels: a loop, the copies in flight where it waits, tensor products and special functions."""

from benchmarks import sass

CODE = """
        /*0000*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;   /* 0x00 */
                                                                                  /* 0x01 */
        /*0010*/                   LDGDEPBAR ;                                    /* 0x02 */
        /*0020*/                   DEPBAR.LE SB0, {n} ;                           /* 0x03 */
        /*0030*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;                /* 0x04 */
        /*0040*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], RZ ;  /* 0x05 */
        /*0050*/                   HGMMA.64x16x16.F32.BF16 R24, gdesc[UR4], R24 ; /* 0x06 */
        /*0060*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;          /* 0x07 */
        /*0070*/                   MUFU.EX2 R3, R3 ;                              /* 0x08 */
        /*0080*/              @P0  BRA 0x10 ;                                     /* 0x09 */
        /*0090*/                   MUFU.RCP R3, R3 ;                              /* 0x0a */
        /*00a0*/                   EXIT ;                                         /* 0x0b */
        /*00b0*/                   BRA 0xb0 ;                                     /* 0x0c */
        /*00c0*/                   NOP ;                                          /* 0x0d */
"""


def test_a_loop_runs_from_where_its_branch_leads() -> None:
    loop = sass.longest_loop(CODE)
    assert len(loop) == 8 and "LDGDEPBAR" in loop[0] and "BRA" in loop[-1]
    assert sass.longest_loop("/*0000*/ EXIT ;") == []
    assert len(sass.instructions(CODE)) == 11


def test_copies_in_flight_are_those_of_the_copies_own_barrier() -> None:
    assert sass.in_flight(sass.longest_loop(CODE.replace("{n}", "0x0"))) == 0
    assert sass.in_flight(sass.longest_loop(CODE.replace("{n}", "0x4"))) == 4
    assert sass.in_flight(["WARPGROUP.DEPBAR.LE gsb0, 0x0 ;"]) == -1


def test_tensor_products_and_special_functions_are_counted() -> None:
    loop = sass.longest_loop(CODE)
    assert sass.tensor_fmas(loop) == 64 * 64 * 16 // 4 + 64 * 16 * 16 // 4 + 16 * 8 * 16
    assert sass.special(loop) == 1 and sass.special(sass.instructions(CODE)) == 2
