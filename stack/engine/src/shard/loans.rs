//! Memory that flows borrow while they have much in flight or out of order: see [`utcp_proto::Lender`].
//!
//! It comes in chunks that grow with the demand and is kept for the next flow, the one that was used last first: it is in
//! the cache. What is lent at once is bounded by the flows of the shard.

use utcp_proto::{ArrivedRuns, Lender, SentRecords};

/// Pieces of the first chunk.
const FIRST: usize = 16;
/// Pieces of a chunk at most.
const CHUNK_MAX: usize = 1024;

/// Pieces of one kind.
#[derive(Debug)]
struct Stock<T: 'static> {
    here: Vec<&'static mut T>,
    made: usize,
}

impl<T: Default + 'static> Stock<T> {
    const fn new() -> Self {
        Self { here: Vec::new(), made: 0 }
    }

    fn take(&mut self) -> Option<&'static mut T> {
        if self.here.is_empty() {
            self.make();
        }
        self.here.pop()
    }

    #[cold]
    fn make(&mut self) {
        let count = self.made.clamp(FIRST, CHUNK_MAX);
        self.made += count;
        // A shard lives as long as the engine, so nothing is lost.
        let chunk: Box<[T]> = (0..count).map(|_| T::default()).collect();
        // Room for all that may come back.
        self.here.reserve(self.made);
        self.here.extend(Box::leak(chunk));
    }
}

/// What a shard has to lend.
#[derive(Debug)]
pub(super) struct Loans {
    records: Stock<SentRecords>,
    runs: Stock<ArrivedRuns>,
}

impl Loans {
    /// Nothing is made yet.
    pub(super) const fn new() -> Self {
        Self { records: Stock::new(), runs: Stock::new() }
    }

    /// Pieces that are lent: records, ranges.
    #[cfg(test)]
    fn lent(&self) -> (usize, usize) {
        (self.records.made - self.records.here.len(), self.runs.made - self.runs.here.len())
    }
}

impl Lender for Loans {
    fn records(&mut self) -> Option<&'static mut SentRecords> {
        self.records.take()
    }

    fn take_records(&mut self, records: &'static mut SentRecords) {
        self.records.here.push(records);
    }

    fn runs(&mut self) -> Option<&'static mut ArrivedRuns> {
        self.runs.take()
    }

    fn take_runs(&mut self, runs: &'static mut ArrivedRuns) {
        self.runs.here.push(runs);
    }
}

#[cfg(test)]
mod tests {
    use utcp_abi::socket::intent;
    use utcp_proto::{SackBlock, Segment, TxLimits, UserCall};

    use super::super::client::SlotUse;
    use super::super::segments::Payload;
    use super::super::tests::World;

    /// The flow of a client's socket; client n is the n-th of the shard.
    fn flow(world: &World, client: u32, sock: u32) -> u32 {
        match world.shard.clients.get(client - 1).expect("a client").slot(sock) {
            SlotUse::Flow(index) => index,
            other => panic!("no flow but {other:?}"),
        }
    }

    #[test]
    fn flows_borrow_for_holes_and_give_back_at_their_end() {
        let mut world = World::new(2);
        world.listen(1, 16);
        let a = world.connect(2);
        let b = world.program(1).accept().expect("a connection waits");
        world.settle();
        let (from, to, now) = (flow(&world, 2, a), flow(&world, 1, b), world.shard.now);
        // A segment that gets lost, and pieces of what comes after it.
        let tcb = &mut world.shard.flows.get_mut(from).expect("a flow").tcb;
        tcb.on_user(now, UserCall::Send { added: 100, more: false, urgent: false }).expect("it is open");
        let sent = tcb.poll_transmit(now, TxLimits::WIRE).expect("a segment");
        let lost = Segment::from_transmit(&sent);
        for n in 1..5 {
            let piece = Segment { seq: lost.seq + n * 20, len: 5, ..lost };
            world.shard.on_flow_segment(to, &piece, Payload::None);
        }
        assert_eq!(world.shard.loans.lent(), (0, 1), "the receiver keeps its ranges there");
        // Its ACKs say so.
        let mut ack = Segment { seq: lost.ack.expect("an ACK"), ack: Some(lost.seq), len: 0, ..lost };
        ack.options.timestamps = None;
        ack.options.sack.push(SackBlock { start: lost.seq + 20, end: lost.seq + 25 });
        world.shard.on_flow_segment(from, &ack, Payload::None);
        assert_eq!(world.shard.loans.lent(), (1, 1), "the sender keeps its records there");
        let made = (world.shard.loans.records.made, world.shard.loans.runs.made);
        world.program(2).intend(a, intent::CLOSE);
        world.program(1).intend(b, intent::CLOSE);
        world.pass(200_000);
        assert_eq!((world.shard.flows.len(), world.shard.loans.lent()), (0, (0, 0)));
        assert_eq!((world.shard.loans.records.made, world.shard.loans.runs.made), made);
    }
}
