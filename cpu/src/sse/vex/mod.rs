//! Instructions with VEX prefixes on vector registers: AVX, AVX2, FMA, F16C, VAES, VPCLMULQDQ (SDM volume 2; volume 1,
//! chapter 14).
//!
//! * [`forms`]: where operands are found. The operations are those of the legacy instructions, and of [`lanes`] what
//!   only VEX encodes.
//! * [`memory`]: helpers for instructions that touch memory element by element (masked moves, gathers) or narrow into
//!   it.
//!
//! The decoder has already refused reserved encodings (VEX.vvvv and VEX.L where they must have one value, other
//! prefixes before VEX, equal registers of a gather) and VEX prefixes in real and virtual-8086 mode.
mod forms;
mod lanes;
mod memory;

use super::convert::*;
use super::crypto::*;
use super::exec::{FloatOp, FusedOp, PairOp, VecExec, VecFlags, VecOp, VecOp3, VecToInt};
use super::f16c::{Vcvtph2ps, Vcvtps2ph};
use super::float_arith::*;
use super::float_cmp::*;
use super::forms::{source_in_memory, target_in_memory};
use super::fused::*;
use super::int_lanes::*;
use super::moves::{Movhlps, Movhps, Movlhps, Movlps, Movq, Movsd, Movss};
use super::shuffle::*;
use crate::width::{W8, W16, W32, W64, Width};
use forms::*;
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use lanes::*;

pub(super) use memory::lookup;

/// The forms that a mnemonic alone chooses, as functions from operation to handler.
mod pick {
    use super::*;
    macro_rules! pick {
        ($($name:ident<$bound:path> = $form:ty;)*) => {$(
            pub fn $name<E: VecExec, O: $bound>(_: &Instruction) -> E::Handler {
                E::handler::<$form>()
            }
        )*};
    }
    pick! {
        bin<VecOp> = Bin<O, Full>;
        low32<VecOp> = Bin<O, Low<W32>>;
        low64<VecOp> = Bin<O, Low<W64>>;
        un<VecOp> = Un<O, Full>;
        half<VecOp> = Un<O, Half>;
        quarter<VecOp> = Un<O, Quarter>;
        eighth<VecOp> = Un<O, Eighth>;
        splat8<VecOp> = Un<O, Low<W8>>;
        splat16<VecOp> = Un<O, Low<W16>>;
        splat32<VecOp> = Un<O, Low<W32>>;
        splat64<VecOp> = Un<O, Low<W64>>;
        blend<VecOp3> = Bin3<O>;
        across<PairOp> = Across<O>;
        to_int<VecToInt> = ToInt<O>;
        flags<VecFlags> = Flags<O>;
        float<FloatOp> = Float<O, Full>;
        float32<FloatOp> = Float<O, Low<W32>>;
        float64<FloatOp> = Float<O, Low<W64>>;
        float_un<FloatOp> = FloatUn<O, Full>;
        float_half<FloatOp> = FloatUn<O, Half>;
        narrow<FloatOp> = FloatNarrow<O>;
        flags32<FloatOp> = FloatFlags<O, Low<W32>>;
        flags64<FloatOp> = FloatFlags<O, Low<W64>>;
        fused<FusedOp> = Fused<O, Full>;
        fused32<FusedOp> = Fused<O, Low<W32>>;
        fused64<FusedOp> = Fused<O, Low<W64>>;
    }
    /// By a register, memory or immediate count, which is the same for both lanes.
    pub fn shift<E: VecExec, O: VecOp>(i: &Instruction) -> E::Handler {
        if i.op2_kind() == OpKind::Immediate8 {
            E::handler::<BinImm<O>>()
        } else {
            E::handler::<Bin<O, Xmm128>>()
        }
    }
}

/// The handler for a VEX instruction, `None` if it is not one of this module's.
pub(super) fn select<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    moved::<E>(i).or_else(|| converted::<E>(i)).or_else(|| named::<E>(i))
}

/// Whether an operand is in memory.
fn in_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
}

/// Moves, whose forms depend on their operands.
fn moved<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    use Mnemonic as M;
    let (to, from) = (target_in_memory(i), source_in_memory(i));
    Some(match i.mnemonic() {
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq if to => {
            E::handler::<Store<Aligned>>()
        }
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntdqa => E::handler::<Load<Aligned>>(),
        M::Vmovups | M::Vmovupd | M::Vmovdqu if to => E::handler::<Store<Full>>(),
        M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Vlddqu => E::handler::<Load<Full>>(),
        M::Vmovddup => E::handler::<Un<Movddup, Duplicated>>(),
        M::Vbroadcastf128 | M::Vbroadcasti128 => E::handler::<Load<Xmm128>>(),
        M::Vinsertf128 | M::Vinserti128 => E::handler::<InsertLane>(),
        M::Vextractf128 | M::Vextracti128 => E::handler::<ExtractLane>(),
        M::Vperm2f128 | M::Vperm2i128 => E::handler::<ChooseLanes>(),
        M::Vpermq | M::Vpermpd => E::handler::<Permute>(),
        M::Vzeroupper => E::handler::<ZeroRegisters<No>>(),
        M::Vzeroall => E::handler::<ZeroRegisters<Yes>>(),

        M::Vmovss if to => E::handler::<StoreLow<W32>>(),
        M::Vmovss if from => E::handler::<Load<Low<W32>>>(),
        M::Vmovss => E::handler::<Bin<Movss, Full>>(),
        M::Vmovsd if to => E::handler::<StoreLow<W64>>(),
        M::Vmovsd if from => E::handler::<Load<Low<W64>>>(),
        M::Vmovsd => E::handler::<Bin<Movsd, Full>>(),
        M::Vmovlps | M::Vmovlpd if to => E::handler::<StoreLow<W64>>(),
        M::Vmovhps | M::Vmovhpd if to => E::handler::<StoreSecond<W64>>(),

        M::Vmovd if to => E::handler::<StoreLow<W32>>(),
        M::Vmovd if i.op0_register().is_gpr() => E::handler::<Extract<W32, W32>>(),
        M::Vmovd => E::handler::<FromInt<W32>>(),
        M::Vmovq if to => E::handler::<StoreLow<W64>>(),
        M::Vmovq if i.op0_register().is_gpr() => E::handler::<Extract<W64, W64>>(),
        M::Vmovq if from || i.op1_register().is_gpr() => E::handler::<FromInt<W64>>(),
        M::Vmovq => E::handler::<Un<Movq, Full>>(),

        M::Vpextrb => E::handler::<Extract<W8, W32>>(),
        M::Vpextrw => E::handler::<Extract<W16, W32>>(),
        M::Vpextrd | M::Vextractps => E::handler::<Extract<W32, W32>>(),
        M::Vpextrq => E::handler::<Extract<W64, W64>>(),
        M::Vpinsrb => E::handler::<Insert<W8, W32>>(),
        M::Vpinsrw => E::handler::<Insert<W16, W32>>(),
        M::Vpinsrd => E::handler::<Insert<W32, W32>>(),
        M::Vpinsrq => E::handler::<Insert<W64, W64>>(),
        M::Vinsertps if in_memory(i) => E::handler::<Bin<InsertpsMem, Low<W32>>>(),
        M::Vinsertps => E::handler::<Bin<Insertps, Full>>(),
        // With an immediate the data are the last operand, and the choice is the same as another instruction's.
        M::Vpermilps if i.op2_kind() == OpKind::Immediate8 => E::handler::<Un<Pshufd, Full>>(),
        M::Vpermilpd if i.op2_kind() == OpKind::Immediate8 => E::handler::<Un<Shufpd, Full>>(),
        M::Vpslldq => E::handler::<BinImm<Pslldq>>(),
        M::Vpsrldq => E::handler::<BinImm<Psrldq>>(),
        _ => return None,
    })
}

/// Conversions with general registers.
fn converted<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    fn to_gpr<E: VecExec, O: FloatOp, W: Width, T: Width>() -> E::Handler {
        E::handler::<FloatInt<O, Low<W>, T>>()
    }
    Some(match i.code() {
        Code::VEX_Vcvtsi2ss_xmm_xmm_rm32 => E::handler::<IntFloat<Cvtsi2ss32, W32>>(),
        Code::VEX_Vcvtsi2ss_xmm_xmm_rm64 => E::handler::<IntFloat<Cvtsi2ss64, W64>>(),
        Code::VEX_Vcvtsi2sd_xmm_xmm_rm32 => E::handler::<IntFloat<Cvtsi2sd32, W32>>(),
        Code::VEX_Vcvtsi2sd_xmm_xmm_rm64 => E::handler::<IntFloat<Cvtsi2sd64, W64>>(),
        Code::VEX_Vcvtss2si_r32_xmmm32 => to_gpr::<E, Cvtss2si32, W32, W32>(),
        Code::VEX_Vcvtss2si_r64_xmmm32 => to_gpr::<E, Cvtss2si64, W32, W64>(),
        Code::VEX_Vcvtsd2si_r32_xmmm64 => to_gpr::<E, Cvtsd2si32, W64, W32>(),
        Code::VEX_Vcvtsd2si_r64_xmmm64 => to_gpr::<E, Cvtsd2si64, W64, W64>(),
        Code::VEX_Vcvttss2si_r32_xmmm32 => to_gpr::<E, Cvttss2si32, W32, W32>(),
        Code::VEX_Vcvttss2si_r64_xmmm32 => to_gpr::<E, Cvttss2si64, W32, W64>(),
        Code::VEX_Vcvttsd2si_r32_xmmm64 => to_gpr::<E, Cvttsd2si32, W64, W32>(),
        Code::VEX_Vcvttsd2si_r64_xmmm64 => to_gpr::<E, Cvttsd2si64, W64, W64>(),
        _ => return None,
    })
}

/// Instructions whose form follows from their name: `instruction=operation`.
fn named<E: VecExec>(i: &Instruction) -> Option<E::Handler> {
    macro_rules! by_name {
        ($($form:ident: $($name:ident=$op:ident)*;)*) => {
            match i.mnemonic() {
                $($(Mnemonic::$name => pick::$form::<E, $op>(i),)*)*
                _ => return None,
            }
        };
    }
    Some(by_name! {
        bin: Vpaddb=Paddb Vpaddw=Paddw Vpaddd=Paddd Vpaddq=Paddq Vpsubb=Psubb Vpsubw=Psubw Vpsubd=Psubd
            Vpsubq=Psubq Vpaddsb=Paddsb Vpaddsw=Paddsw Vpaddusb=Paddusb Vpaddusw=Paddusw Vpsubsb=Psubsb
            Vpsubsw=Psubsw Vpsubusb=Psubusb Vpsubusw=Psubusw Vpmullw=Pmullw Vpmulhw=Pmulhw Vpmulhuw=Pmulhuw
            Vpmulhrsw=Pmulhrsw Vpmulld=Pmulld Vpmuludq=Pmuludq Vpmuldq=Pmuldq Vpmaddwd=Pmaddwd
            Vpmaddubsw=Pmaddubsw Vpsadbw=Psadbw Vpavgb=Pavgb Vpavgw=Pavgw Vpminsb=Pminsb Vpminsw=Pminsw
            Vpminsd=Pminsd Vpminub=Pminub Vpminuw=Pminuw Vpminud=Pminud Vpmaxsb=Pmaxsb Vpmaxsw=Pmaxsw
            Vpmaxsd=Pmaxsd Vpmaxub=Pmaxub Vpmaxuw=Pmaxuw Vpmaxud=Pmaxud Vpcmpeqb=Pcmpeqb Vpcmpeqw=Pcmpeqw
            Vpcmpeqd=Pcmpeqd Vpcmpeqq=Pcmpeqq Vpcmpgtb=Pcmpgtb Vpcmpgtw=Pcmpgtw Vpcmpgtd=Pcmpgtd
            Vpcmpgtq=Pcmpgtq Vpand=Pand Vpandn=Pandn Vpor=Por Vpxor=Pxor Vandps=Andps Vandpd=Andpd
            Vandnps=Andnps Vandnpd=Andnpd Vorps=Orps Vorpd=Orpd Vxorps=Xorps Vxorpd=Xorpd Vpsignb=Psignb
            Vpsignw=Psignw Vpsignd=Psignd Vphaddw=Phaddw Vphaddsw=Phaddsw Vphsubw=Phsubw Vphsubsw=Phsubsw
            Vphaddd=Phaddd Vphsubd=Phsubd Vmpsadbw=Mpsadbw Vpunpcklbw=Punpcklbw Vpunpcklwd=Punpcklwd
            Vpunpckldq=Punpckldq Vpunpcklqdq=Punpcklqdq Vpunpckhbw=Punpckhbw Vpunpckhwd=Punpckhwd
            Vpunpckhdq=Punpckhdq Vpunpckhqdq=Punpckhqdq Vunpcklps=Unpcklps Vunpckhps=Unpckhps
            Vunpcklpd=Unpcklpd Vunpckhpd=Unpckhpd Vpacksswb=Packsswb Vpackuswb=Packuswb Vpackssdw=Packssdw
            Vpackusdw=Packusdw Vpshufb=Pshufb Vshufps=Shufps Vshufpd=Shufpd Vpalignr=Palignr Vblendps=Blendps
            Vblendpd=Blendpd Vpblendw=Pblendw Vmovlhps=Movlhps Vmovhlps=Movhlps Vaesenc=Aesenc
            Vaesenclast=Aesenclast Vaesdec=Aesdec Vaesdeclast=Aesdeclast Vpclmulqdq=Pclmulqdq;
        bin: Vpermilps=Vpermilps Vpermilpd=Vpermilpd Vpsllvd=Vpsllvd Vpsllvq=Vpsllvq Vpsrlvd=Vpsrlvd
            Vpsrlvq=Vpsrlvq Vpsravd=Vpsravd Vpblendd=Blendps;
        un: Vpabsb=Pabsb Vpabsw=Pabsw Vpabsd=Pabsd Vpshufd=Pshufd Vpshuflw=Pshuflw Vpshufhw=Pshufhw
            Vmovshdup=Movshdup Vmovsldup=Movsldup Vphminposuw=Phminposuw Vrcpps=Rcpps Vrsqrtps=Rsqrtps
            Vaesimc=Aesimc Vaeskeygenassist=Aeskeygenassist;
        shift: Vpsllw=Psllw Vpslld=Pslld Vpsllq=Psllq Vpsrlw=Psrlw Vpsrld=Psrld Vpsrlq=Psrlq Vpsraw=Psraw
            Vpsrad=Psrad;
        blend: Vpblendvb=Pblendvb Vblendvps=Blendvps Vblendvpd=Blendvpd;
        half: Vpmovsxbw=Pmovsxbw Vpmovsxwd=Pmovsxwd Vpmovsxdq=Pmovsxdq Vpmovzxbw=Pmovzxbw Vpmovzxwd=Pmovzxwd
            Vpmovzxdq=Pmovzxdq;
        quarter: Vpmovsxbd=Pmovsxbd Vpmovsxwq=Pmovsxwq Vpmovzxbd=Pmovzxbd Vpmovzxwq=Pmovzxwq;
        eighth: Vpmovsxbq=Pmovsxbq Vpmovzxbq=Pmovzxbq;
        low32: Vrcpss=Rcpss Vrsqrtss=Rsqrtss;
        low64: Vmovlps=Movlps Vmovlpd=Movlps Vmovhps=Movhps Vmovhpd=Movhps;
        splat8: Vpbroadcastb=Vpbroadcastb;
        splat16: Vpbroadcastw=Vpbroadcastw;
        splat32: Vpbroadcastd=Vpbroadcastd Vbroadcastss=Vpbroadcastd;
        splat64: Vpbroadcastq=Vpbroadcastq Vbroadcastsd=Vpbroadcastq;
        float: Vaddps=Addps Vaddpd=Addpd Vsubps=Subps Vsubpd=Subpd Vmulps=Mulps Vmulpd=Mulpd Vdivps=Divps
            Vdivpd=Divpd Vminps=Minps Vminpd=Minpd Vmaxps=Maxps Vmaxpd=Maxpd Vaddsubps=Addsubps
            Vaddsubpd=Addsubpd Vhaddps=Haddps Vhaddpd=Haddpd Vhsubps=Hsubps Vhsubpd=Hsubpd Vdpps=Dpps
            Vdppd=Dppd Vcmpps=Vcmpps Vcmppd=Vcmppd;
        float32: Vaddss=Addss Vsubss=Subss Vmulss=Mulss Vdivss=Divss Vminss=Minss Vmaxss=Maxss Vsqrtss=Sqrtss
            Vroundss=Roundss Vcvtss2sd=Cvtss2sd Vcmpss=Vcmpss;
        float64: Vaddsd=Addsd Vsubsd=Subsd Vmulsd=Mulsd Vdivsd=Divsd Vminsd=Minsd Vmaxsd=Maxsd Vsqrtsd=Sqrtsd
            Vroundsd=Roundsd Vcvtsd2ss=Cvtsd2ss Vcmpsd=Vcmpsd;
        float_un: Vsqrtps=Sqrtps Vsqrtpd=Sqrtpd Vroundps=Roundps Vroundpd=Roundpd Vcvtdq2ps=Cvtdq2ps
            Vcvtps2dq=Cvtps2dq Vcvttps2dq=Cvttps2dq;
        float_half: Vcvtdq2pd=Cvtdq2pd Vcvtps2pd=Cvtps2pd Vcvtph2ps=Vcvtph2ps;
        narrow: Vcvtpd2dq=Cvtpd2dq Vcvttpd2dq=Cvttpd2dq Vcvtpd2ps=Cvtpd2ps Vcvtps2ph=Vcvtps2ph;
        flags32: Vcomiss=Comiss Vucomiss=Ucomiss;
        flags64: Vcomisd=Comisd Vucomisd=Ucomisd;
        to_int: Vpmovmskb=Pmovmskb Vmovmskps=Movmskps Vmovmskpd=Movmskpd;
        flags: Vptest=Ptest Vtestps=Vtestps Vtestpd=Vtestpd;
        fused: Vfmadd132ps=Vfmadd132ps Vfmadd132pd=Vfmadd132pd Vfmadd213ps=Vfmadd213ps Vfmadd213pd=Vfmadd213pd
            Vfmadd231ps=Vfmadd231ps Vfmadd231pd=Vfmadd231pd Vfmsub132ps=Vfmsub132ps Vfmsub132pd=Vfmsub132pd
            Vfmsub213ps=Vfmsub213ps Vfmsub213pd=Vfmsub213pd Vfmsub231ps=Vfmsub231ps Vfmsub231pd=Vfmsub231pd
            Vfnmadd132ps=Vfnmadd132ps Vfnmadd132pd=Vfnmadd132pd Vfnmadd213ps=Vfnmadd213ps
            Vfnmadd213pd=Vfnmadd213pd Vfnmadd231ps=Vfnmadd231ps Vfnmadd231pd=Vfnmadd231pd
            Vfnmsub132ps=Vfnmsub132ps Vfnmsub132pd=Vfnmsub132pd Vfnmsub213ps=Vfnmsub213ps
            Vfnmsub213pd=Vfnmsub213pd Vfnmsub231ps=Vfnmsub231ps Vfnmsub231pd=Vfnmsub231pd
            Vfmaddsub132ps=Vfmaddsub132ps Vfmaddsub132pd=Vfmaddsub132pd Vfmaddsub213ps=Vfmaddsub213ps
            Vfmaddsub213pd=Vfmaddsub213pd Vfmaddsub231ps=Vfmaddsub231ps Vfmaddsub231pd=Vfmaddsub231pd
            Vfmsubadd132ps=Vfmsubadd132ps Vfmsubadd132pd=Vfmsubadd132pd Vfmsubadd213ps=Vfmsubadd213ps
            Vfmsubadd213pd=Vfmsubadd213pd Vfmsubadd231ps=Vfmsubadd231ps Vfmsubadd231pd=Vfmsubadd231pd;
        fused32: Vfmadd132ss=Vfmadd132ss Vfmadd213ss=Vfmadd213ss Vfmadd231ss=Vfmadd231ss
            Vfmsub132ss=Vfmsub132ss Vfmsub213ss=Vfmsub213ss Vfmsub231ss=Vfmsub231ss Vfnmadd132ss=Vfnmadd132ss
            Vfnmadd213ss=Vfnmadd213ss Vfnmadd231ss=Vfnmadd231ss Vfnmsub132ss=Vfnmsub132ss
            Vfnmsub213ss=Vfnmsub213ss Vfnmsub231ss=Vfnmsub231ss;
        fused64: Vfmadd132sd=Vfmadd132sd Vfmadd213sd=Vfmadd213sd Vfmadd231sd=Vfmadd231sd
            Vfmsub132sd=Vfmsub132sd Vfmsub213sd=Vfmsub213sd Vfmsub231sd=Vfmsub231sd Vfnmadd132sd=Vfnmadd132sd
            Vfnmadd213sd=Vfnmadd213sd Vfnmadd231sd=Vfnmadd231sd Vfnmsub132sd=Vfnmsub132sd
            Vfnmsub213sd=Vfnmsub213sd Vfnmsub231sd=Vfnmsub231sd;
        across: Vpermd=Vpermd Vpermps=Vpermd;
    })
}
