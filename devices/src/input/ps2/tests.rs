use super::keyboard::OVERRUN;
use super::*;

fn drain(mut take: impl FnMut() -> Option<u8>) -> Vec<u8> {
    std::iter::from_fn(&mut take).take(1000).collect()
}

fn ask(k: &mut Keyboard, bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for b in bytes {
        k.write(*b);
        all.extend(drain(|| k.take()));
    }
    all
}

fn ask_mouse(m: &mut Mouse, bytes: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for b in bytes {
        m.write(*b);
        all.extend(drain(|| m.take()));
    }
    all
}

#[test]
fn the_keyboard_answers_its_commands() {
    let mut k = Keyboard::new();
    assert_eq!(ask(&mut k, &[0xff]), [0xfa, 0xaa]);
    assert_eq!(ask(&mut k, &[0xf2]), [0xfa, 0xab, 0x83]);
    assert_eq!(ask(&mut k, &[0xee]), [0xee]);
    assert_eq!(ask(&mut k, &[0xed, 0x05]), [0xfa, 0xfa]);
    assert_eq!(k.leds(), 5);
    assert_eq!(ask(&mut k, &[0xf0, 0x00]), [0xfa, 0xfa, 0x02]);
    assert_eq!(ask(&mut k, &[0xf0, 0x03, 0xf0, 0x00]), [0xfa, 0xfa, 0xfa, 0xfa, 0x03]);
    assert_eq!(ask(&mut k, &[0xf0, 0x04]), [0xfa, 0xfe]);
    assert_eq!(ask(&mut k, &[0xfe]), [0xfe], "the last byte again");
    assert_eq!(ask(&mut k, &[0xf6, 0xf0, 0x00]), [0xfa, 0xfa, 0xfa, 0x02]);
    assert_eq!(ask(&mut k, &[0xf3, 0x20]), [0xfa, 0xfa]);
    assert_eq!(ask(&mut k, &[0x12]), [0xfe]);
    assert_eq!(ask(&mut k, &[0xed, 0xf4]), [0xfa, 0xfa], "a command takes the place of an argument");
}

#[test]
fn keys_are_sent_in_set_2_and_set_1() {
    let mut k = Keyboard::new();
    let tap = |k: &mut Keyboard, key| {
        k.key(key, true, 0);
        k.key(key, false, 0);
        drain(|| k.take())
    };
    assert_eq!(tap(&mut k, Key::new(0x1e)), [0x1c, 0xf0, 0x1c]);
    assert_eq!(tap(&mut k, Key::extended(0x48)), [0xe0, 0x75, 0xe0, 0xf0, 0x75]);
    assert_eq!(tap(&mut k, Key::PAUSE), [0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]);
    k.key(Key::PRINT_SCREEN, true, 0);
    assert_eq!(drain(|| k.take()), [0xe0, 0x12, 0xe0, 0x7c]);
    ask(&mut k, &[0xf0, 0x01]);
    assert_eq!(tap(&mut k, Key::new(0x1e)), [0x1e, 0x9e]);
}

#[test]
fn keys_of_set_3_send_what_was_chosen_for_each() {
    let mut k = Keyboard::new();
    let tap = |k: &mut Keyboard, key| {
        k.key(key, true, 0);
        let repeats = k.due().is_some();
        k.key(key, false, 0);
        (drain(|| k.take()), repeats)
    };
    let (a, shift, f1, right) = (Key::new(0x1e), Key::new(0x2a), Key::new(0x3b), Key::extended(0x4d));
    ask(&mut k, &[0xf0, 3]);
    assert_eq!(tap(&mut k, a), (vec![0x1c], true));
    assert_eq!(tap(&mut k, shift), (vec![0x12, 0xf0, 0x12], false));
    assert_eq!((tap(&mut k, f1), tap(&mut k, right)), ((vec![0x07], false), (vec![0x6a], true)));
    assert_eq!(
        (tap(&mut k, Key::PAUSE), tap(&mut k, Key::PRINT_SCREEN)),
        ((vec![0x62], false), (vec![0x57], false))
    );
    for (command, codes, repeats) in [
        (0xf7, &[0x07][..], true),
        (0xf8, &[0x07, 0xf0, 0x07], false),
        (0xf9, &[0x07], false),
        (0xfa, &[0x07, 0xf0, 0x07], true),
    ] {
        assert_eq!(ask(&mut k, &[command]), [0xfa]);
        assert_eq!(tap(&mut k, f1), (codes.to_vec(), repeats), "{command:#x}");
    }
    // Single ones, as many as are named; meanwhile it does not scan.
    assert_eq!(ask(&mut k, &[0xfd, 0x1c, 0x07, 0x05]), [0xfa, 0xfa, 0xfa, 0xfe]);
    assert_eq!(tap(&mut k, a), (vec![], false));
    assert_eq!(ask(&mut k, &[0xfc, 0x6a, 0xfb, 0x12, 0xf4]), [0xfa; 5]);
    assert_eq!((tap(&mut k, a), tap(&mut k, f1)), ((vec![0x1c], false), (vec![0x07], false)));
    assert_eq!(tap(&mut k, right), (vec![0x6a, 0xf0, 0x6a], false));
    assert_eq!(tap(&mut k, shift), (vec![0x12], true));
    // In other sets that is no matter, and a reset undoes it.
    ask(&mut k, &[0xf0, 2]);
    assert_eq!(tap(&mut k, a), (vec![0x1c, 0xf0, 0x1c], true));
    ask(&mut k, &[0xff, 0xf0, 3]);
    assert_eq!((tap(&mut k, a), tap(&mut k, f1)), ((vec![0x1c], true), (vec![0x07], false)));
}

#[test]
fn every_key_of_set_1_has_one_code_in_set_2_that_translates_back() {
    for code in 1..=0x58 {
        let set2 = to_set2(code);
        assert_eq!(TO_SET1[usize::from(set2)], code, "{code:#x}");
    }
}

#[test]
fn a_keyboard_that_nobody_reads_overruns_without_losing_its_replies() {
    let mut k = Keyboard::new();
    for _ in 0..100 {
        k.key(Key::new(0x1e), true, 0);
        k.key(Key::new(0x1e), false, 0);
    }
    k.write(0xee);
    let got = drain(|| k.take());
    assert_eq!(got[0], 0xee);
    assert_eq!(&got[1..], [[0x1c, 0xf0, 0x1c].repeat(5), vec![0x1c, OVERRUN]].concat());
}

#[test]
fn a_disabled_keyboard_sends_no_keys() {
    let mut k = Keyboard::new();
    ask(&mut k, &[0xf5]);
    k.key(Key::new(0x1e), true, 0);
    assert_eq!(drain(|| k.take()), [0_u8; 0]);
    ask(&mut k, &[0xf4]);
    k.key(Key::new(0x1e), true, 0);
    assert_eq!(drain(|| k.take()), [0x1c]);
}

#[test]
fn the_mouse_reports_movement_and_buttons() {
    let mut m = Mouse::new();
    assert_eq!(ask_mouse(&mut m, &[0xff]), [0xfa, 0xaa, 0x00]);
    assert_eq!(ask_mouse(&mut m, &[0xf2]), [0xfa, 0x00]);
    m.moved(5, 5, 0, MouseButtons::default());
    assert_eq!(drain(|| m.take()), [0_u8; 0], "not before it is enabled");
    assert_eq!(ask_mouse(&mut m, &[0xf4]), [0xfa]);
    m.moved(5, -3, 0, MouseButtons { left: true, ..Default::default() });
    assert_eq!(drain(|| m.take()), [0x29, 5, 0xfd]);
    m.moved(300, 0, 0, MouseButtons::default());
    assert_eq!(drain(|| m.take()), [0x08, 255, 0, 0x08, 45, 0], "what one packet cannot hold is in the next");
    assert_eq!(ask_mouse(&mut m, &[0xe9]), [0xfa, 0x20, 2, 100]);
}

#[test]
fn the_knock_turns_the_wheel_on_until_a_reset() {
    let mut m = Mouse::new();
    ask_mouse(&mut m, &[0xf3, 200, 0xf3, 100, 0xf3, 80]);
    assert_eq!(ask_mouse(&mut m, &[0xf2, 0xf4]), [0xfa, 3, 0xfa]);
    m.moved(0, 0, -1, MouseButtons::default());
    assert_eq!(drain(|| m.take()), [0x08, 0, 0, 0xff]);
    // The same again, and two more buttons.
    ask_mouse(&mut m, &[0xf3, 200, 0xf3, 200, 0xf3, 80]);
    assert_eq!(ask_mouse(&mut m, &[0xf2]), [0xfa, 4]);
    m.moved(0, 0, -1, MouseButtons { back: true, left: true, ..Default::default() });
    m.moved(0, 0, 7, MouseButtons { forward: true, ..Default::default() });
    assert_eq!(drain(|| m.take()), [0x09, 0, 0, 0x1f, 0x08, 0, 0, 0x27]);
    assert_eq!(ask_mouse(&mut m, &[0xff, 0xf2]), [0xfa, 0xaa, 0x00, 0xfa, 0x00]);
}
