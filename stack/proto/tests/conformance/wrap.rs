//! Sequence numbers wrap (RFC 9293 §3.4): every scenario of this folder once more, with initial sequence numbers by which 2³¹ and 2³² are
//! passed at its SYN, its data, its holes, its FIN, by us, by the peer and by both.
//!
//! 2³² is where numbers begin again, 2³¹ where the sign of a difference taken for a number would change.

use crate::lab::with_numbers;
use crate::*;

/// The scenarios by module.
macro_rules! scenarios {
    ($($module:ident { $($name:ident,)* })*) => {
        &[$($((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn()),)*)*]
    };
}

const SCENARIOS: &[(&str, fn())] = scenarios! {
    hostile {
        a_window_that_shrinks_to_nothing_under_data_in_flight,
        a_closed_window_does_not_hold_an_orphan_for_ever,
        a_large_window_scale_and_a_small_stream,
        an_urgent_pointer_at_what_is_there_already,
        two_half_open_connections_do_not_keep_each_other_busy,
        ends_that_contradict_the_stream,
        rfc_8201_packets_too_small_to_be_true,
        a_reset_beside_data_out_of_order,
        a_syn_in_every_synchronized_state,
        a_receiver_that_reneges,
        sack_blocks_without_end,
        a_peer_with_segments_of_one_byte,
        timestamps_wrap,
        overlaps_never_reach_back,
        duplicates_that_were_never_sent,
        strangers_do_not_put_off_keepalive,
        hundreds_of_keepalive_probes,
        acks_and_resets_under_a_window_that_shrank,
        a_probe_is_no_ack,
        urgent_data_in_long_segments,
        keepalive_beside_a_closed_window,
    }
    rfc1122 {
        must_40_delayed_ack,
        quick_acks_at_the_start,
        the_first_ack_waits_for_an_answer,
        read_to_the_end_in_one_direction,
        read_to_the_end_to_and_fro,
        interactive_exchange_delays_acks,
        long_requests_are_acknowledged_by_the_response,
        the_ack_of_a_long_request_waits_for_a_moment,
        the_ack_of_a_bulk_does_not_wait,
        section_4_2_3_6_keepalive_answered,
        section_4_2_3_6_keepalive_unanswered,
        keepalive_is_off_by_default,
        peers_keepalive_is_answered,
        user_timeout,
        user_timeout_beyond_r2,
        section_4_2_3_6_keepalive_and_data,
        section_4_2_3_5_retransmissions_run_out,
        orphan_leaves_fin_wait_2,
        icmp_is_checked_against_the_flight,
        soft_errors_are_forgotten_with_progress,
        icmp_while_connecting,
        rfc_1191_fragmentation_needed,
        rfc_4821_black_hole,
        rfc_4821_black_hole_behind_a_closed_window,
        resets_are_not_answered,
    }
    rfc2018 {
        section_2_sack_permitted,
        section_4_order_of_blocks,
        section_3_three_blocks_with_timestamps,
        rfc_2883_dsack,
        rfc_6675_only_the_holes_are_sent_again,
        nonsense_blocks_are_ignored,
        section_8_reneging,
        unexpected_blocks_are_ignored,
    }
    rfc3168 {
        section_6_1_1_negotiation,
        section_6_1_1_1_a_repeated_syn_does_not_ask,
        section_6_1_2_which_segments_are_ect,
        section_6_1_3_receiver_echoes,
        section_6_1_2_sender_reacts_once,
    }
    rfc4821 {
        section_7_3_probe,
        section_7_6_2_success,
        section_7_6_1_loss_of_a_probe,
        section_7_6_4_loss_of_more_than_the_probe,
        rfc1191_section_6_1_the_link_shrinks_and_grows,
        rfc1191_section_6_3_a_routers_word_ages,
        rfc1191_section_6_3_the_link_grows_meanwhile,
        off_by_default,
        section_7_4_no_probe_without_data_behind_it,
    }
    rfc4987 {
        a_connection_out_of_a_cookie,
    }
    rfc5681 {
        rfc_6928_initial_window,
        section_3_1_slow_start,
        rfc_7661_unused_window_does_not_grow,
        section_3_2_fast_retransmit_and_newreno,
        rfc_3042_limited_transmit,
        section_2_window_updates_are_no_duplicates,
        section_4_1_idle,
        rfc_6937_prr,
    }
    rfc5961 {
        section_3_2_reset,
        section_3_2_reset_behind_a_hole,
        section_3_2_reset_with_the_number_of_the_fin,
        section_4_2_syn,
        section_5_2_ack,
        section_5_2_ack_of_what_was_never_sent,
        section_7_rate_limit,
        section_7_probes_are_no_challenges,
    }
    rfc6191 {
        a_repeated_fin_is_acknowledged_and_restarts_the_wait,
        section_2_reuse_by_timestamp,
        section_2_a_guess_does_not_set_the_clock,
        section_2_reuse_by_sequence_number,
        rfc_1337_assassination,
        answers_are_limited,
        connecting_again_needs_timestamps_and_a_second,
    }
    rfc6298 {
        section_5_1_5_2_timer_follows_the_flight,
        section_5_4_to_5_6_timeout,
        section_3_karn,
        section_5_7_lost_syn,
        section_2_4_floor,
        rfc_5682_spurious_timeout_with_sack,
        rfc_3522_spurious_timeout_by_timestamp,
    }
    rfc7323 {
        section_2_window_scale_offer,
        section_2_3_windows_are_scaled,
        section_2_3_largest_shift,
        section_2_4_rounding,
        section_3_2_timestamps_on_all_segments,
        section_4_1_rtt_from_the_echo,
        section_4_3_which_timestamp_to_echo,
        section_5_3_paws,
        section_5_3_a_syn_with_timestamp_zero,
        section_5_5_outdated_timestamps,
        section_3_2_echo_of_another_syn,
        section_4_1_round_trip_of_a_receiver,
        round_trip_of_a_receiver_without_timestamps,
    }
    rfc7413 {
        section_4_1_2_cookie,
        section_4_1_1_request,
        section_4_2_1_data_in_the_syn,
        section_4_2_1_data_not_taken,
        section_4_1_3_lost_syn,
        section_4_2_2_server,
        server_repeats_the_syn_ack,
        server_closes_before_the_handshake_is_complete,
        the_ack_goes_with_what_waits,
        section_4_1_3_1_too_big,
    }
    rfc8985 {
        section_6_2_time_based_loss,
        section_6_2_dupthresh,
        section_6_2_reordering_is_learnt,
        lost_retransmission,
        section_7_3_tail_loss_probe_repeats_the_last_segment,
        section_7_3_tail_loss_probe_with_new_data,
        section_7_4_what_a_probe_proves,
        undo_by_dsack,
        section_6_2_rtt_of_the_last_segment,
    }
    rfc9293 {
        must_15_default_mss,
        must_16_effective_mss,
        segment_acceptability,
        must_66_zero_window_still_reads_acks_and_resets,
        ack_of_the_future,
        segment_without_ack_is_dropped,
        window_follows_the_newest_segment,
        shld_31_reassembly,
        fin_out_of_order_waits_for_the_data,
        must_36_zero_window_probing,
        silent_zero_window_peer_times_out,
        must_34_shrinking_window,
        must_38_sender_sws_avoidance,
        must_39_receiver_sws_avoidance,
        shld_14_window_never_shrinks,
        must_30_to_33_and_62_urgent_data,
        must_66_urgent_with_a_closed_window,
        must_1_window_is_unsigned,
        must_65_no_mss_on_other_segments,
        must_56_soft_errors_do_not_abort,
        must_60_61_push,
        must_17_nagle,
        cork_holds_small_segments_for_a_while,
        same_host_segments_may_be_large,
        time_is_kept_of_what_holds_data_back,
        time_is_kept_of_a_stream_that_is_too_short,
    }
    rfc9293_states {
        three_way_handshake_active,
        must_10_simultaneous_open,
        simultaneous_open_completed_by_a_plain_ack,
        syn_sent_answers_a_wrong_ack_with_a_reset,
        syn_sent_reset,
        syn_ack_with_data_and_fin,
        half_open_checks_the_third_segment,
        closed_answers_with_a_reset,
        active_close_ends_in_time_wait,
        passive_close_ends_in_closed,
        simultaneous_close,
        data_after_close_resets,
        data_after_both_sides_were_shut_is_reset,
        close_with_unread_data_resets,
        abort,
        reset_in_every_state,
        calls_in_the_wrong_state,
        must_8_9_initial_sequence_numbers,
        must_23_syn_gives_up,
    }
};

/// How far behind the initial sequence number the boundary lies: around all that scenarios send and receive.
fn distances() -> Vec<u32> {
    let points = [1, 100, 500, 1_000, 1_460, 2_000, 3_000, 4_000, 5_000, 7_500, 10_000];
    let mut all: Vec<u32> = points.iter().flat_map(|&point| point - 1..=point + 2).collect();
    all.extend([10, 11, 50, 150, 250, 1_500, 2_500, 6_000, 8_000, 9_000]);
    all
}

/// Each scenario is played at every fifth distance, the next one at others; with `UTCP_TEST_LONG=yes` at all.
#[test]
fn every_scenario_at_the_boundaries() {
    let ordinary = 5_000_000;
    let long = std::env::var_os("UTCP_TEST_LONG").is_some_and(|long| long == "yes");
    let step = if long { 1 } else { 5 };
    for (i, (name, scenario)) in SCENARIOS.iter().enumerate() {
        for boundary in [0u32, 1 << 31] {
            for after in distances().into_iter().skip(i % step).step_by(step) {
                let near = boundary.wrapping_sub(after);
                for numbers in [[near, ordinary], [ordinary, near], [near, near]] {
                    let played = std::panic::catch_unwind(|| with_numbers(numbers, scenario));
                    assert!(played.is_ok(), "{name} with {numbers:?}, {after} before {boundary:#x}");
                }
            }
        }
    }
}

/// A scenario that is new has to be on the list.
#[test]
fn every_scenario_is_listed() {
    for (module, text) in [
        ("hostile", include_str!("hostile.rs")),
        ("rfc1122", include_str!("rfc1122.rs")),
        ("rfc2018", include_str!("rfc2018.rs")),
        ("rfc3168", include_str!("rfc3168.rs")),
        ("rfc4821", include_str!("rfc4821.rs")),
        ("rfc5681", include_str!("rfc5681.rs")),
        ("rfc5961", include_str!("rfc5961.rs")),
        ("rfc6191", include_str!("rfc6191.rs")),
        ("rfc6298", include_str!("rfc6298.rs")),
        ("rfc7323", include_str!("rfc7323.rs")),
        ("rfc7413", include_str!("rfc7413.rs")),
        ("rfc8985", include_str!("rfc8985.rs")),
        ("rfc9293", include_str!("rfc9293.rs")),
        ("rfc9293_states", include_str!("rfc9293_states.rs")),
    ] {
        let mut after = text.split("#[test]\nfn ");
        after.next();
        for name in after.map(|rest| rest.split('(').next().unwrap_or_default()) {
            let full = format!("{module}::{name}");
            assert!(SCENARIOS.iter().any(|(listed, _)| *listed == full), "{full} is not on the list");
        }
    }
}
