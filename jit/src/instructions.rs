//! What is known of each instruction beside its operands, in one table ([`row`]).
//!
//! Which operands an instruction has, how it accesses them and which flags it reads and may change is iced-x86's
//! (`InstructionInfo`, `OpCodeInfo`). Here is the rest: how the baseline takes it, registers that are not among its
//! operands, how its memory operand must be aligned, and what of flags and destination it writes in any case.
//!
//! An instruction that is not here is called, by the baseline; so are those of which the table says so. Regions take
//! what has semantics in `mynah-cpu`, and look here for what is written.
use iced_x86::{Instruction, Mnemonic, Register};
use mynah_cpu::int::string::One;

/// How the baseline takes an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Not: it calls the interpreter's handler.
    Called,
    /// As it is, with other general registers.
    Same,
    /// As it is, with the guest's RAX in the host's meanwhile.
    AroundRax,
    /// As it is, if it works on XMM or YMM registers (some names are MMX instructions or string instructions as well).
    Vector,
    /// Nothing has to be done.
    Nothing,
    /// By an emitter of its own.
    Own,
}

/// How a memory operand must be aligned (SDM volume 1, 14.9 and volume 2, 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Not at all.
    Free,
    /// If it has 16 bytes, to these.
    Vectors,
    /// To its length.
    Aligned,
}

/// What is known of an instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub taken: Taken,
    /// Registers that it uses beside its operands, RSP aside where it pushes or pops.
    pub implicit: &'static [Register],
    pub memory: Memory,
    /// It writes the whole of its first operand, without looking at it.
    pub whole: bool,
    /// It writes all arithmetic flags without looking at them, in our semantics as well.
    pub sets_flags: bool,
    /// It leaves the flags, or some of them, as they were if a count is 0.
    pub counts: bool,
}

const CALLED: Row = Row {
    taken: Taken::Called,
    implicit: &[],
    memory: Memory::Free,
    whole: false,
    sets_flags: false,
    counts: false,
};
const SAME: Row = Row { taken: Taken::Same, ..CALLED };
const OWN: Row = Row { taken: Taken::Own, ..CALLED };
const VECTOR: Row = Row { taken: Taken::Vector, memory: Memory::Vectors, ..CALLED };
const VEX: Row = Row { taken: Taken::Vector, ..CALLED };
/// With RAX, and RDX if it is wider than a byte.
const AROUND_RAX: Row = Row { taken: Taken::AroundRax, implicit: &[Register::RAX, Register::RDX], ..CALLED };

/// The row of an instruction.
pub(crate) fn row(i: &Instruction) -> Row {
    use Mnemonic::*;
    match One::of(i) {
        Some(One::Movs(_)) => return Row { implicit: &[Register::RSI, Register::RDI], ..OWN },
        Some(One::Stos(_)) => return Row { implicit: &[Register::RDI], ..OWN },
        Some(One::Lods(_)) => return Row { implicit: &[Register::RSI], ..OWN },
        None => {}
    }
    match i.mnemonic() {
        Mov | Movzx | Movsx | Movsxd | Movbe => Row { whole: true, ..SAME },
        Add | Or | And | Sub | Xor | Cmp | Test | Neg | Xadd | Bsf | Bsr => Row { sets_flags: true, ..SAME },
        Popcnt | Tzcnt | Lzcnt | Andn | Bextr | Blsi | Blsmsk | Blsr | Bzhi => {
            Row { sets_flags: true, ..SAME }
        }
        Adc | Sbb | Inc | Dec | Not | Cmc | Clc | Stc | Xchg | Bt | Bts | Btr | Btc | Bswap | Movnti
        | Lfence | Mfence | Sfence | Crc32 | Adcx | Adox => SAME,
        Sarx | Shlx | Shrx | Rorx | Pdep | Pext => SAME,
        Mulx => Row { implicit: &[Register::RDX], ..SAME },
        Shl | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd => Row { counts: true, ..SAME },
        Seta | Setae | Setb | Setbe | Sete | Setg | Setge | Setl | Setle | Setne | Setno | Setnp | Setns
        | Seto | Setp | Sets => SAME,
        Cmova | Cmovae | Cmovb | Cmovbe | Cmove | Cmovg | Cmovge | Cmovl | Cmovle | Cmovne | Cmovno
        | Cmovnp | Cmovns | Cmovo | Cmovp | Cmovs => SAME,
        Imul if i.op_count() > 1 => Row { whole: i.op_count() == 3, sets_flags: true, ..SAME },
        Mul | Imul => Row { sets_flags: true, ..AROUND_RAX },
        Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo => AROUND_RAX,
        Cmpxchg => Row { implicit: &[Register::RAX], sets_flags: true, ..AROUND_RAX },
        Nop | Endbr64 | Endbr32 | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchnta | Prefetchw
        | Prefetch | Prefetchwt1 => Row { taken: Taken::Nothing, ..CALLED },
        Lea | Pop => Row { whole: true, ..OWN },
        Push | Vzeroupper | Wait => OWN,
        Leave => Row { implicit: &[Register::RBP], ..OWN },
        Div | Idiv => Row { implicit: &[Register::RAX, Register::RDX], ..OWN },
        Fcomi | Fcomip | Fucomi | Fucomip => Row { sets_flags: true, ..OWN },
        Movaps | Movapd | Movdqa | Movd => Row { whole: true, ..VECTOR },
        Movups | Movupd | Movdqu | Lddqu => Row { whole: true, memory: Memory::Free, ..VECTOR },
        Comiss | Comisd | Ucomiss | Ucomisd | Ptest => Row { sets_flags: true, ..VECTOR },
        Blendvps | Blendvpd | Pblendvb | Sha256rnds2 => Row { implicit: &[Register::XMM0], ..VECTOR },
        Pcmpistri => Row { implicit: &[Register::RCX], memory: Memory::Free, ..VECTOR },
        Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa => {
            Row { memory: Memory::Aligned, ..VEX }
        }
        Vcomiss | Vcomisd | Vucomiss | Vucomisd | Vptest | Vtestps | Vtestpd => {
            Row { sets_flags: true, ..VEX }
        }
        Vpcmpistri => Row { implicit: &[Register::RCX], ..VEX },
        // SSE to SSE4.2, AES, PCLMULQDQ, SHA.
        Aesimc | Aesenc | Aesenclast | Aesdec | Aesdeclast | Aeskeygenassist | Pclmulqdq | Sha1nexte
        | Sha1msg1 | Sha1msg2 | Sha256msg1 | Sha256msg2 | Sha1rnds4 | Movss | Movhlps | Movlps | Unpcklps
        | Unpckhps | Movlhps | Movhps | Cvtpi2ps | Cvtsi2ss | Movntps | Cvttss2si | Cvtss2si | Movmskps
        | Sqrtps | Sqrtss | Rsqrtps | Rsqrtss | Rcpps | Rcpss | Andps | Andnps | Orps | Xorps | Addps
        | Addss | Mulps | Mulss | Subps | Subss | Minps | Minss | Divps | Divss | Maxps | Maxss | Cmpps
        | Cmpss | Shufps | Movsd | Movlpd | Unpcklpd | Unpckhpd | Movhpd | Cvtpi2pd | Cvtsi2sd | Movntpd
        | Cvttsd2si | Cvtsd2si | Movmskpd | Sqrtpd | Sqrtsd | Andpd | Andnpd | Orpd | Xorpd | Addpd
        | Addsd | Mulpd | Mulsd | Cvtps2pd | Cvtpd2ps | Cvtss2sd | Cvtsd2ss | Cvtdq2ps | Cvtps2dq
        | Cvttps2dq | Subpd | Subsd | Minpd | Minsd | Divpd | Divsd | Maxpd | Maxsd | Punpcklbw
        | Punpcklwd | Punpckldq | Packsswb | Pcmpgtb | Pcmpgtw | Pcmpgtd | Packuswb | Punpckhbw
        | Punpckhwd | Punpckhdq | Packssdw | Punpcklqdq | Punpckhqdq | Movq | Pshufd | Pshufhw | Pshuflw
        | Psrlw | Psraw | Psllw | Psrld | Psrad | Pslld | Psrlq | Psrldq | Psllq | Pslldq | Pcmpeqb
        | Pcmpeqw | Pcmpeqd | Cmppd | Cmpsd | Pinsrw | Pextrw | Shufpd | Paddq | Pmullw | Pmovmskb
        | Psubusb | Psubusw | Pminub | Pand | Paddusb | Paddusw | Pmaxub | Pandn | Pavgb | Pavgw
        | Pmulhuw | Pmulhw | Cvttpd2dq | Cvtdq2pd | Cvtpd2dq | Movntdq | Psubsb | Psubsw | Pminsw | Por
        | Paddsb | Paddsw | Pmaxsw | Pxor | Pmuludq | Pmaddwd | Psadbw | Psubb | Psubw | Psubd | Psubq
        | Paddb | Paddw | Paddd | Movsldup | Movddup | Movshdup | Haddpd | Haddps | Hsubpd | Hsubps
        | Addsubpd | Addsubps | Pmovsxbw | Pmovsxbd | Pmovsxbq | Pmovsxwd | Pmovsxwq | Pmovsxdq | Pmuldq
        | Pcmpeqq | Movntdqa | Packusdw | Pmovzxbw | Pmovzxbd | Pmovzxbq | Pmovzxwd | Pmovzxwq | Pmovzxdq
        | Pminsb | Pminsd | Pminuw | Pminud | Pmaxsb | Pmaxsd | Pmaxuw | Pmaxud | Pmulld | Phminposuw
        | Roundps | Roundpd | Roundss | Roundsd | Blendps | Blendpd | Pblendw | Pextrb | Pextrd | Pextrq
        | Extractps | Pinsrb | Insertps | Pinsrd | Pinsrq | Dpps | Dppd | Mpsadbw | Pcmpgtq | Pshufb
        | Phaddw | Phaddd | Phaddsw | Pmaddubsw | Phsubw | Phsubd | Phsubsw | Psignb | Psignw | Psignd
        | Pmulhrsw | Pabsb | Pabsw | Pabsd | Palignr => VECTOR,
        // AVX, AVX2, F16C, FMA, VAES, VPCLMULQDQ.
        Vaesimc | Vaesenc | Vaesenclast | Vaesdec | Vaesdeclast | Vaeskeygenassist | Vmovups | Vmovupd
        | Vmovss | Vmovsd | Vmovhlps | Vmovlps | Vmovlpd | Vmovsldup | Vmovddup | Vunpcklps | Vunpcklpd
        | Vunpckhps | Vunpckhpd | Vmovlhps | Vmovhps | Vmovhpd | Vmovshdup | Vcvtsi2ss | Vcvtsi2sd
        | Vcvttss2si | Vcvttsd2si | Vcvtss2si | Vcvtsd2si | Vmovmskps | Vmovmskpd | Vsqrtps | Vsqrtpd
        | Vsqrtss | Vsqrtsd | Vrsqrtps | Vrsqrtss | Vrcpps | Vrcpss | Vandps | Vandpd | Vandnps | Vandnpd
        | Vorps | Vorpd | Vxorps | Vxorpd | Vaddps | Vaddpd | Vaddss | Vaddsd | Vmulps | Vmulpd | Vmulss
        | Vmulsd | Vcvtps2pd | Vcvtpd2ps | Vcvtss2sd | Vcvtsd2ss | Vcvtdq2ps | Vcvtps2dq | Vcvttps2dq
        | Vsubps | Vsubpd | Vsubss | Vsubsd | Vminps | Vminpd | Vminss | Vminsd | Vdivps | Vdivpd
        | Vdivss | Vdivsd | Vmaxps | Vmaxpd | Vmaxss | Vmaxsd | Vpunpcklbw | Vpunpcklwd | Vpunpckldq
        | Vpacksswb | Vpcmpgtb | Vpcmpgtw | Vpcmpgtd | Vpackuswb | Vpunpckhbw | Vpunpckhwd | Vpunpckhdq
        | Vpackssdw | Vpunpcklqdq | Vpunpckhqdq | Vmovd | Vmovq | Vmovdqu | Vpshufd | Vpshufhw | Vpshuflw
        | Vpsrlw | Vpsraw | Vpsllw | Vpsrld | Vpsrad | Vpslld | Vpsrlq | Vpsrldq | Vpsllq | Vpslldq
        | Vpcmpeqb | Vpcmpeqw | Vpcmpeqd | Vhaddpd | Vhaddps | Vhsubpd | Vhsubps | Vcmpps | Vcmppd
        | Vcmpss | Vcmpsd | Vpinsrw | Vpextrw | Vshufps | Vshufpd | Vaddsubpd | Vaddsubps | Vpaddq
        | Vpmullw | Vpmovmskb | Vpsubusb | Vpsubusw | Vpminub | Vpand | Vpaddusb | Vpaddusw | Vpmaxub
        | Vpandn | Vpavgb | Vpavgw | Vpmulhuw | Vpmulhw | Vcvttpd2dq | Vcvtdq2pd | Vcvtpd2dq | Vpsubsb
        | Vpsubsw | Vpminsw | Vpor | Vpaddsb | Vpaddsw | Vpmaxsw | Vpxor | Vlddqu | Vpmuludq | Vpmaddwd
        | Vpsadbw | Vpsubb | Vpsubw | Vpsubd | Vpsubq | Vpaddb | Vpaddw | Vpaddd | Vpshufb | Vphaddw
        | Vphaddd | Vphaddsw | Vpmaddubsw | Vphsubw | Vphsubd | Vphsubsw | Vpsignb | Vpsignw | Vpsignd
        | Vpmulhrsw | Vpermilps | Vpermilpd | Vbroadcastss | Vbroadcastsd | Vbroadcastf128 | Vpabsb
        | Vpabsw | Vpabsd | Vpmovsxbw | Vpmovsxbd | Vpmovsxbq | Vpmovsxwd | Vpmovsxwq | Vpmovsxdq
        | Vpmuldq | Vpcmpeqq | Vpackusdw | Vmaskmovps | Vmaskmovpd | Vpmovzxbw | Vpmovzxbd | Vpmovzxbq
        | Vpmovzxwd | Vpmovzxwq | Vpmovzxdq | Vpcmpgtq | Vpminsb | Vpminsd | Vpminuw | Vpminud | Vpmaxsb
        | Vpmaxsd | Vpmaxuw | Vpmaxud | Vpmulld | Vphminposuw | Vperm2f128 | Vroundps | Vroundpd
        | Vroundss | Vroundsd | Vblendps | Vblendpd | Vpblendw | Vpalignr | Vpextrb | Vpextrd | Vpextrq
        | Vextractps | Vinsertf128 | Vextractf128 | Vpinsrb | Vinsertps | Vpinsrd | Vpinsrq | Vdpps
        | Vdppd | Vmpsadbw | Vblendvps | Vblendvpd | Vpblendvb | Vpermps | Vpermd | Vpsrlvd | Vpsrlvq
        | Vpsravd | Vpsllvd | Vpsllvq | Vpbroadcastd | Vpbroadcastq | Vbroadcasti128 | Vpbroadcastb
        | Vpbroadcastw | Vpmaskmovd | Vpmaskmovq | Vpermq | Vpermpd | Vpblendd | Vinserti128
        | Vextracti128 | Vperm2i128 | Vcvtph2ps | Vcvtps2ph | Vfmaddsub132ps | Vfmaddsub132pd
        | Vfmsubadd132ps | Vfmsubadd132pd | Vfmadd132ps | Vfmadd132pd | Vfmadd132ss | Vfmadd132sd
        | Vfmsub132ps | Vfmsub132pd | Vfmsub132ss | Vfmsub132sd | Vfnmadd132ps | Vfnmadd132pd
        | Vfnmadd132ss | Vfnmadd132sd | Vfnmsub132ps | Vfnmsub132pd | Vfnmsub132ss | Vfnmsub132sd
        | Vfmaddsub213ps | Vfmaddsub213pd | Vfmsubadd213ps | Vfmsubadd213pd | Vfmadd213ps | Vfmadd213pd
        | Vfmadd213ss | Vfmadd213sd | Vfmsub213ps | Vfmsub213pd | Vfmsub213ss | Vfmsub213sd
        | Vfnmadd213ps | Vfnmadd213pd | Vfnmadd213ss | Vfnmadd213sd | Vfnmsub213ps | Vfnmsub213pd
        | Vfnmsub213ss | Vfnmsub213sd | Vfmaddsub231ps | Vfmaddsub231pd | Vfmsubadd231ps | Vfmsubadd231pd
        | Vfmadd231ps | Vfmadd231pd | Vfmadd231ss | Vfmadd231sd | Vfmsub231ps | Vfmsub231pd | Vfmsub231ss
        | Vfmsub231sd | Vfnmadd231ps | Vfnmadd231pd | Vfnmadd231ss | Vfnmadd231sd | Vfnmsub231ps
        | Vfnmsub231pd | Vfnmsub231ss | Vfnmsub231sd | Vpclmulqdq => VEX,
        _ => CALLED,
    }
}
