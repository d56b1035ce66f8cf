//! What a shard counts. One line per counter: its name and what it means.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// Counters of one shard, written by it alone.
        #[derive(Debug, Default, Clone)]
        pub struct Counters { $($(#[doc = $doc])+ pub $name: u64,)* }

        impl Counters {
            /// Every counter: name, value, meaning.
            #[must_use]
            pub fn list(&self) -> Vec<(&'static str, u64, &'static str)> {
                vec![$((stringify!($name), self.$name, concat!($($doc),+)),)*]
            }

            /// Adds another shard's.
            pub fn add(&mut self, other: &Self) { $(self.$name += other.$name;)* }
        }
    };
}

counters! {
    /// Rounds of the loop that found work.
    rounds,
    /// Times the shard went to sleep.
    sleeps,
    /// Times the shard let frames gather, and nobody woke it.
    naps,
    /// Sockets that programs asked the shard to look at.
    commands,
    /// Wake-ups sent to programs that slept in epoll, poll or select (eventfd writes).
    wakes_set,
    /// Wake-ups sent to programs that slept on one socket (futex).
    wakes_socket,
    /// Connections that programs asked for and utcp serves.
    connects,
    /// Connections that programs asked for and the kernel serves.
    connects_kernel,
    /// Of those that utcp serves: whose port was chosen so that the NIC's hash (RSS) brings replies to the shard's own queue.
    connects_hashed,
    /// Connections that began with a Fast Open cookie, at a listener.
    fast_opens,
    /// Connections of programs whose SYN could bring data.
    fast_connects,
    /// Connections put into an accept queue.
    accepts,
    /// Connections that ended.
    closed,
    /// Segments between two programs of this host.
    local_segments,
    /// Their bytes.
    local_bytes,
    /// Connections between two programs of this host whose bytes don't pass the engine.
    cut_through,
    /// Bytes of such connections, counted at their end.
    cut_through_bytes,
    /// Such connections that went on by segments, because one of their sockets became another program's.
    uncut,
    /// Frames received from devices.
    rx_frames,
    /// Frames given to devices.
    tx_frames,
    /// Segments that were sent again.
    retransmits,
    /// Segments that a TCB refused, whatever the reason.
    dropped_segments,
    /// ICMP errors about segments of ours.
    icmp_errors,
    /// Questions, answers and echoes of the link, where the engine is a host of its own (TAP, pipe).
    neighbour_frames,
    /// Of these: blind resets, SYNs and ACKs into a connection (RFC 5961), which somebody may have forged.
    dropped_blind,
    /// Of these: timestamps older than the last one (PAWS).
    dropped_paws,
    /// Of these: out of order, and the list of ranges was full.
    dropped_reassembly_full,
    /// Challenge ACKs sent (RFC 5961).
    challenge_acks,
    /// Challenge ACKs not sent because there were too many in this second.
    challenge_acks_withheld,
    /// Frames that were not a well-formed packet for us.
    dropped_frames,
    /// IP fragments of segments for us.
    fragments,
    /// Of these: dropped with their packet, because they overlap or make no packet.
    dropped_fragments,
    /// Frames dropped because the tx ring was full (TCP sends them again).
    dropped_tx_full,
    /// Frames for a device that went away.
    dropped_no_device,
    /// Frames from and to where the host's routes or rules forbid to send (blackhole, unreachable, prohibit).
    dropped_barred,
    /// Segments over a device whose source is this host itself, a group or nobody.
    dropped_martians,
    /// Frames that came to this shard's queue and were sent to the shard that has the flow.
    frames_handed_over,
    /// Such frames that were dropped: the other shard did not keep up, or has no queue there.
    handover_lost,
    /// Connections over a device that this shard took on because the one that was asked has no queue there.
    connects_passed,
    /// Segments for no connection, answered by a reset.
    resets_sent,
    /// SYNs dropped because the accept queue was full.
    listen_overflows,
    /// SYNs answered by a cookie because the SYN queue was full.
    syn_cookies,
    /// Connections dropped because the program has no socket slot left.
    out_of_sockets,
    /// TIME-WAIT records dropped early because there were too many.
    time_wait_overflows,
    /// Clients thrown out because they wrote a word that no correct client can have written.
    corrupt_clients,
}
