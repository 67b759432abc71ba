//! Admin commands (chapter 5).
use super::command::{Command, Status};
use super::controller::Turn;
use super::queue::{Completion, Submission};
use super::registers::MOST_ENTRIES;
use super::task::{Origin, Task, What};
use super::{NAMESPACES, identify};
use crate::pieces;

/// Operation codes (figure 141).
mod op {
    pub const DELETE_SQ: u8 = 0x00;
    pub const CREATE_SQ: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_CQ: u8 = 0x04;
    pub const CREATE_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const ASYNC_EVENT: u8 = 0x0c;
    pub const FORMAT: u8 = 0x80;
}

/// How a command goes on.
enum Then {
    /// It has ended with this.
    End(u32),
    /// It ends later.
    Later,
}

impl Turn<'_, '_> {
    pub fn admin(&mut self, command: &Command) {
        tracing::trace!(?command, "nvme: admin");
        let result = match command.opcode {
            // No fused commands.
            _ if command.flags & 3 != 0 => Err(Status::INVALID_FIELD),
            op::DELETE_SQ => self.delete_submission(command),
            op::CREATE_SQ => self.create_submission(command).map(|()| Then::End(0)),
            op::GET_LOG_PAGE => self.get_log_page(command).map(|()| Then::End(0)),
            op::DELETE_CQ => self.delete_completion(command).map(|()| Then::End(0)),
            op::CREATE_CQ => self.create_completion(command).map(|()| Then::End(0)),
            op::IDENTIFY => self.identify(command).map(|()| Then::End(0)),
            op::ABORT => {
                let (queue, id) = (command.dword(10) as u16, (command.dword(10) >> 16) as u16);
                // Bit 0: it was not aborted.
                Ok(Then::End((!self.inner.abort(queue, id)).into()))
            }
            op::SET_FEATURES => self.set_features(command).map(Then::End),
            op::GET_FEATURES => self.get_features(command).map(Then::End),
            op::ASYNC_EVENT => self.async_event(command),
            op::FORMAT => self.format(command),
            _ => Err(Status::INVALID_OPCODE),
        };
        match result {
            Ok(Then::Later) => {}
            Ok(Then::End(result)) => self.inner.end(0, command.id, result, Status::SUCCESS),
            Err(status) => {
                tracing::debug!(?command, ?status, "nvme: an admin command fails");
                self.inner.end(0, command.id, 0, status);
            }
        }
    }

    /// Hands data over to the host.
    pub fn give(&self, command: &Command, bytes: &[u8]) -> Result<(), Status> {
        let data = command.data(self.memory, bytes.len() as u64, self.page, true)?;
        if pieces::write(self.memory, &data, 0, bytes) { Ok(()) } else { Err(Status::DATA_TRANSFER) }
    }

    /// A queue's address and entries, if it can be one.
    fn queue_of(&self, command: &Command, entry: u64) -> Result<(u64, u32), Status> {
        const CONTIGUOUS: u32 = 1;
        let size = (command.dword(10) >> 16) + 1;
        if !(2..=MOST_ENTRIES).contains(&size) {
            return Err(Status::QUEUE_SIZE);
        }
        if command.dword(11) & CONTIGUOUS == 0 {
            return Err(Status::INVALID_FIELD);
        }
        let base = command.prp1;
        if !base.is_multiple_of(self.page) {
            return Err(Status::PRP_OFFSET);
        }
        if base.checked_add(u64::from(size) * entry).is_none() {
            return Err(Status::INVALID_FIELD);
        }
        Ok((base, size))
    }

    /// Whether the host has said how long entries are, as it must (CC.IOSQES, CC.IOCQES).
    fn entries_are_set(&self) -> bool {
        self.nvme.regs.lock().cc >> 16 & 0xff == 0x46
    }

    fn create_completion(&mut self, command: &Command) -> Result<(), Status> {
        const INTERRUPTS: u32 = 2;
        let id = command.dword(10) as u16;
        if id == 0 || id > self.nvme.options.pairs || self.inner.completions.contains_key(&id) {
            return Err(Status::QUEUE_ID);
        }
        let (base, size) = self.queue_of(command, 16)?;
        if !self.entries_are_set() {
            return Err(Status::INVALID_FIELD);
        }
        let vector = (command.dword(11) >> 16) as u16;
        let messages = self.nvme.function.has_messages();
        if vector >= self.nvme.options.vectors || !messages && vector > 0 {
            return Err(Status::VECTOR);
        }
        let vector = (command.dword(11) & INTERRUPTS != 0).then_some(vector);
        self.inner.completions.insert(id, Completion::new(base, size, vector));
        self.nvme.regs.lock().still(id, |rung| rung.head = None);
        Ok(())
    }

    fn create_submission(&mut self, command: &Command) -> Result<(), Status> {
        let (id, completion) = (command.dword(10) as u16, (command.dword(11) >> 16) as u16);
        if completion == 0 || !self.inner.completions.contains_key(&completion) {
            return Err(Status::CQ_INVALID);
        }
        if id == 0 || id > self.nvme.options.pairs || self.inner.submissions.contains_key(&id) {
            return Err(Status::QUEUE_ID);
        }
        let (base, size) = self.queue_of(command, 64)?;
        if !self.entries_are_set() {
            return Err(Status::INVALID_FIELD);
        }
        self.inner.submissions.insert(id, Submission::new(base, size, completion));
        self.nvme.regs.lock().still(id, |rung| rung.tail = None);
        Ok(())
    }

    /// Ends when nothing of the queue is under way any more (5.6).
    fn delete_submission(&mut self, command: &Command) -> Result<Then, Status> {
        let id = command.dword(10) as u16;
        match self.inner.submissions.get_mut(&id).filter(|_| id != 0) {
            Some(queue) if queue.deleted_by.is_none() => {
                queue.deleted_by = Some(command.id);
                Ok(Then::Later)
            }
            _ => Err(Status::QUEUE_ID),
        }
    }

    fn delete_completion(&mut self, command: &Command) -> Result<(), Status> {
        let id = command.dword(10) as u16;
        if id == 0 || !self.inner.completions.contains_key(&id) {
            return Err(Status::QUEUE_ID);
        }
        if self.inner.submissions.values().any(|q| q.completion == id) {
            return Err(Status::QUEUE_DELETION);
        }
        self.inner.completions.remove(&id);
        Ok(())
    }

    fn identify(&mut self, command: &Command) -> Result<(), Status> {
        let nsid = command.nsid;
        let all = self.nvme.namespaces();
        let found = all.iter().find(|n| n.nsid == nsid);
        let is_number = (1..=NAMESPACES).contains(&nsid);
        let page = match command.dword(10) as u8 {
            0x00 => match found {
                Some(namespace) => identify::namespace(namespace),
                // What all have in common: nothing is known.
                None if nsid == u32::MAX || is_number => vec![0; identify::LEN],
                None => return Err(Status::INVALID_NAMESPACE),
            },
            0x01 => identify::controller(&self.nvme.options),
            0x02 if nsid >= u32::MAX - 1 => return Err(Status::INVALID_NAMESPACE),
            0x02 => identify::list(&all, nsid),
            0x03 => match found {
                Some(namespace) => identify::descriptors(namespace),
                None => return Err(Status::INVALID_NAMESPACE),
            },
            _ => return Err(Status::INVALID_FIELD),
        };
        self.give(command, &page)
    }

    fn async_event(&mut self, command: &Command) -> Result<Then, Status> {
        if self.inner.event_requests.len() > usize::from(self.nvme.options.aerl) {
            return Err(Status::EVENT_LIMIT);
        }
        self.inner.event_requests.push(command.id);
        // It may wait for ever, and is in nobody's way.
        if let Some(queue) = self.inner.submissions.get_mut(&0) {
            queue.outstanding = queue.outstanding.saturating_sub(1);
        }
        Ok(Then::Later)
    }

    /// Format NVM (5.23): the namespaces' blocks are zeros then.
    fn format(&mut self, command: &Command) -> Result<Then, Status> {
        let options = command.dword(10);
        // Format 0, no metadata, no protection; user data are erased, not by forgetting a key.
        if options & 0xf != 0 || options >> 4 & 1 != 0 || options >> 5 & 7 != 0 {
            return Err(Status::FORMAT);
        }
        if options >> 9 & 7 > 1 {
            return Err(Status::INVALID_FIELD);
        }
        let Some(namespace) = self.nvme.namespace(command.nsid) else {
            return Err(Status::INVALID_NAMESPACE);
        };
        let zero = What::Zero { at: 0, len: namespace.blocks() << namespace.shift, unmap: true };
        let origin = Origin::Command(0, command.id);
        self.submit(Task::new(origin, namespace.nsid, zero, Vec::new(), true), false);
        Ok(Then::Later)
    }
}
