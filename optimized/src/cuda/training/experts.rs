//! A mixture of experts. The rows that an expert gets stand together, in ascending order, and one expert's
//! follow the other's, so that all sums have one order.

use std::ops::Range;

use aqlm_vocabulary::{BlockSpec, Input, RoutedMlp};

use super::super::{Buffer, Result};
use super::gated::Gated;
use super::gradients::Gradients;
use super::machine::Machine;
use super::pass::{Pass, Rows, outputs};
use super::plan;
use super::products::Precision;

/// The experts of some rows. Each row has `used` slots, one for each of its experts in ascending order. A
/// place is a row among those that experts compute; there is one for each slot.
pub(super) struct Routing {
    /// softmax of the scores, [rows, experts]
    probabilities: Buffer<f32>,
    /// the expert of each slot
    chosen: Buffer<u32>,
    /// the factor of each slot
    weights: Buffer<f32>,
    /// the places of each expert
    of_expert: Vec<Range<usize>>,
    /// the place of each slot
    places: Buffer<u32>,
    /// the slot of each place
    slots: Buffer<u32>,
    /// the row of each place
    rows: Buffer<u32>,
}

/// The values inside a mixture of experts.
pub(super) struct Routed {
    routing: Routing,
    /// the input of each place, [places, hidden]
    own: Buffer<f32>,
    /// of all experts, [places, intermediate]
    inside: Gated,
    /// of the shared expert: the factor of its output, `[rows]`, and the values inside
    shared: Option<(Buffer<f32>, Gated)>,
}

impl Routing {
    /// From scores, [rows, experts].
    fn of(machine: &Machine, mlp: &RoutedMlp, scores: Buffer<f32>) -> Result<Self> {
        let (experts, used) = (mlp.experts.len(), mlp.used);
        let count = scores.len() / experts * used;
        let chosen: Buffer<u32> = machine.space(count, "the experts of rows")?;
        let weights = machine.space(count, "the factors of experts")?;
        machine.run(
            &plan::experts::route(count / used, mlp),
            &[
                machine.place(&scores),
                machine.place(&chosen),
                machine.place(&weights),
            ],
        )?;
        let list = machine.device().download(&chosen)?;
        let mut ends = vec![0; experts];
        for &expert in &list {
            ends[expert as usize] += 1;
        }
        let mut before = 0;
        let of_expert: Vec<Range<usize>> = ends
            .iter()
            .map(|&own: &usize| {
                before += own;
                before - own..before
            })
            .collect();
        let mut next: Vec<usize> = of_expert.iter().map(|range| range.start).collect();
        let (mut places, mut slots) = (vec![0; count], vec![0; count]);
        for (slot, &expert) in list.iter().enumerate() {
            let place = &mut next[expert as usize];
            (places[slot], slots[*place]) = (*place as u32, slot as u32);
            *place += 1;
        }
        let rows: Vec<u32> = slots.iter().map(|slot| slot / used as u32).collect();
        Ok(Self {
            probabilities: scores,
            chosen,
            weights,
            of_expert,
            places: machine.upload(&places, "the places of slots")?,
            slots: machine.upload(&slots, "the slots of places")?,
            rows: machine.upload(&rows, "the rows of places")?,
        })
    }

    /// The row of each place, [places, width].
    fn gathered(&self, machine: &Machine, x: &Buffer<f32>, width: usize) -> Result<Buffer<f32>> {
        let to = machine.space(self.rows.len() * width, "the rows of experts")?;
        machine.run(
            &plan::embed(width, self.rows.len(), 1.0),
            &[machine.place(x), machine.place(&self.rows), machine.place(&to)],
        )?;
        Ok(to)
    }

    /// For each row the sum of its places, times their factors if `weighted`: [places, width] to [rows,
    /// width].
    fn summed(
        &self,
        machine: &Machine,
        from: &Buffer<f32>,
        [width, used]: [usize; 2],
        weighted: bool,
    ) -> Result<Buffer<f32>> {
        let rows = self.places.len() / used;
        let to = machine.space(rows * width, "sums over experts")?;
        machine.run(
            &plan::experts::gather_sums(rows, width, used, weighted),
            &[
                machine.place(from),
                machine.place(&self.places),
                machine.place(&self.weights),
                machine.place(&to),
            ],
        )?;
        Ok(to)
    }

    /// Multiplies each place by its factor, [places, width].
    fn scale(&self, machine: &Machine, x: &Buffer<f32>, width: usize) -> Result<()> {
        machine.run(
            &plan::experts::scale_rows(self.slots.len(), width, true),
            &[
                machine.place(&self.weights),
                machine.place(&self.slots),
                machine.place(x),
            ],
        )
    }

    /// The gradient of the scores, given that of each place's factor.
    fn backward(
        &self,
        machine: &Machine,
        mlp: &RoutedMlp,
        grad_weights: &Buffer<f32>,
    ) -> Result<Buffer<f32>> {
        let to = machine.space(self.probabilities.len(), "the gradient of scores")?;
        machine.run(
            &plan::experts::route_back(self.places.len() / mlp.used, mlp),
            &[
                machine.place(&self.probabilities),
                machine.place(&self.chosen),
                machine.place(&self.weights),
                machine.place(&self.places),
                machine.place(grad_weights),
                machine.place(&to),
            ],
        )?;
        Ok(to)
    }
}

impl Routed {
    /// From the MLP's input, with its output: sum of w_e expert_e(x) over the experts that the router
    /// chooses, in the order of experts, and sigmoid(gate x) shared(x) if there is a shared expert.
    ///
    /// Scores are computed in f32 in any case, so that a row has the same experts whatever training rounds.
    pub(super) fn of(
        pass: Pass<'_>,
        mlp: &RoutedMlp,
        x: &Buffer<f32>,
        rows: usize,
    ) -> Result<(Self, Buffer<f32>)> {
        let (machine, spec) = (pass.machine, &pass.block.spec);
        let exact = Pass {
            precision: Precision::Single,
            ..pass
        };
        let scores = exact.apply(pass.whole(mlp.router), x, rows)?;
        let routing = Routing::of(machine, mlp, scores)?;
        let (hidden, count) = (spec.hidden_size(), routing.places.len());
        let inner = spec.shape(mlp.experts[0].down).1;
        let own = routing.gathered(machine, x, hidden)?;
        let mut gate = machine.space(count * inner, "the gates of experts")?;
        let mut up = machine.space(count * inner, "the ups of experts")?;
        for (expert, range) in mlp.experts.iter().zip(&routing.of_expert) {
            if range.is_empty() {
                continue;
            }
            let x = own.slice(of_width(range, hidden));
            let [of_gate, of_up] = outputs([expert.gate, expert.up], [inner; 2]);
            for (of, to) in [(of_gate, &mut gate), (of_up, &mut up)] {
                let mut to = to.slice_mut(of_width(range, inner));
                pass.multiply(of, &x, &mut to, range.len(), false)?;
            }
        }
        let inside = Gated::activated(machine, &mlp.experts[0], gate, up)?;
        let mut added = machine.space(count * hidden, "the outputs of experts")?;
        for (expert, range) in mlp.experts.iter().zip(&routing.of_expert) {
            if range.is_empty() {
                continue;
            }
            let x = inside.activated.slice(of_width(range, inner));
            let mut to = added.slice_mut(of_width(range, hidden));
            pass.multiply(pass.whole(expert.down), &x, &mut to, range.len(), false)?;
        }
        let out = routing.summed(machine, &added, [hidden, mlp.used], true)?;
        drop(added);
        let shared = match &mlp.shared {
            None => None,
            Some(shared) => {
                let inside = Gated::of(pass, &shared.mlp, x, rows)?;
                let factor = pass.apply(pass.whole(shared.gate), x, rows)?;
                machine.sigmoid(None, &factor)?;
                let added = pass.apply(pass.whole(shared.mlp.down), &inside.activated, rows)?;
                machine.scale_rows(&factor, &added, hidden)?;
                machine.add_scaled(&added, 1.0, &out)?;
                Some((factor, inside))
            }
        };
        let inside = Self {
            routing,
            own,
            inside,
            shared,
        };
        Ok((inside, out))
    }

    /// The input of the linear layers that read `read`.
    pub(super) fn input(&self, read: Input) -> Option<Rows<'_>> {
        let part = |values: &'_ Buffer<f32>, index: u16| {
            let range = self.routing.of_expert.get(usize::from(index))?;
            Some(of_width(range, values.len() / self.routing.places.len().max(1)))
        };
        match read {
            Input::Activated => self.shared.as_ref().map(|(_, inside)| inside.activated.slice(..)),
            Input::Expert(index) => Some(self.own.slice(part(&self.own, index)?)),
            Input::ExpertActivated(index) => {
                let activated = &self.inside.activated;
                Some(activated.slice(part(activated, index)?))
            }
            Input::Attention | Input::Attended | Input::Mlp => None,
        }
    }

    /// The gradients of the layers and of the MLP's input x, given that of its output. Small changes of x
    /// choose the same experts: only the factors of these experts have gradients.
    ///
    /// The gradient of a factor w of w D a, with a the activated gate and D the last layer, is (grad D) a. So
    /// no output of an expert is kept.
    pub(super) fn backward(
        &self,
        gradients: &mut Gradients<'_>,
        mlp: &RoutedMlp,
        x: &Buffer<f32>,
        grad_out: &Buffer<f32>,
        rows: usize,
    ) -> Result<Buffer<f32>> {
        let pass = gradients.pass;
        let (machine, spec) = (pass.machine, &pass.block.spec);
        let (routing, hidden) = (&self.routing, spec.hidden_size());
        let inner = spec.shape(mlp.experts[0].down).1;
        let experts = || mlp.experts.iter().zip(&routing.of_expert);
        let grad = routing.gathered(machine, grad_out, hidden)?;
        let mut grad_activated = machine.space(self.inside.activated.len(), "the gradient of experts")?;
        for (expert, range) in experts().filter(|(_, range)| !range.is_empty()) {
            let from = grad.slice(of_width(range, hidden));
            let mut to = grad_activated.slice_mut(of_width(range, inner));
            pass.back(pass.whole(expert.down), &from, &mut to, range.len(), false)?;
        }
        let grad_weights = machine.row_products(&grad_activated, &self.inside.activated, inner)?;
        routing.scale(machine, &grad, hidden)?;
        routing.scale(machine, &grad_activated, inner)?;
        for (expert, range) in experts() {
            let activated = self.inside.activated.slice(of_width(range, inner));
            let grad = grad.slice(of_width(range, hidden));
            gradients.add(expert.down, &activated, &[&grad], range.len())?;
        }
        drop(grad);
        let [grad_gate, grad_up] = self.inside.gate_back(machine, &mlp.experts[0], grad_activated)?;
        let mut grad_own = machine.space(self.own.len(), "the gradient of experts' rows")?;
        for (expert, range) in experts() {
            let views = [&grad_gate, &grad_up].map(|grad| grad.slice(of_width(range, inner)));
            let layers = [expert.gate, expert.up];
            let own = self.own.slice(of_width(range, hidden));
            gradients.add_each(&layers, &own, &views.each_ref(), range.len())?;
            if range.is_empty() {
                continue;
            }
            let mut to = grad_own.slice_mut(of_width(range, hidden));
            for (number, (of, grad)) in outputs(layers, [inner; 2]).into_iter().zip(&views).enumerate() {
                pass.back(of, grad, &mut to, range.len(), number > 0)?;
            }
        }
        let mut grad_x = routing.summed(machine, &grad_own, [hidden, mlp.used], false)?;
        drop((grad_own, grad_gate, grad_up));
        let grad_scores = routing.backward(machine, mlp, &grad_weights)?;
        gradients.add(mlp.router, &x.slice(..), &[&grad_scores.slice(..)], rows)?;
        pass.back(pass.whole(mlp.router), &grad_scores, &mut grad_x, rows, true)?;
        if let (Some(shared), Some((factor, inside))) = (&mlp.shared, &self.shared) {
            let inner = spec.shape(shared.mlp.down).1;
            let mut grad_activated =
                machine.space(inside.activated.len(), "the gradient of a shared expert")?;
            pass.back(
                pass.whole(shared.mlp.down),
                grad_out,
                &mut grad_activated,
                rows,
                false,
            )?;
            let grad_gate = machine.row_products(&grad_activated, &inside.activated, inner)?;
            machine.sigmoid(Some(factor), &grad_gate)?;
            gradients.add(shared.gate, &x.slice(..), &[&grad_gate.slice(..)], rows)?;
            pass.back(pass.whole(shared.gate), &grad_gate, &mut grad_x, rows, true)?;
            let grad = machine.copy(grad_out, "the gradient of a shared expert's output")?;
            machine.scale_rows(factor, &grad, hidden)?;
            machine.scale_rows(factor, &grad_activated, inner)?;
            let of_shared =
                inside.backward(gradients, &shared.mlp, &x.slice(..), &grad, grad_activated, rows)?;
            machine.add_scaled(&of_shared, 1.0, &grad_x)?;
        }
        Ok(grad_x)
    }

    /// The parts in the order of computation, each with the layer or module whose output it is and its width.
    pub(super) fn parts<'a>(
        &'a self,
        spec: &'a BlockSpec,
        mlp: &RoutedMlp,
    ) -> Vec<(&'a str, Rows<'a>, usize)> {
        let name = |layer| spec.linear(layer).name.as_str();
        let mut parts = vec![(
            name(mlp.router),
            self.routing.probabilities.slice(..),
            mlp.experts.len(),
        )];
        for (expert, range) in mlp.experts.iter().zip(&self.routing.of_expert) {
            parts.extend(self.inside.parts(spec, expert, range.clone()));
        }
        if let (Some(shared), Some((factor, inside))) = (&mlp.shared, &self.shared) {
            parts.push((name(shared.gate), factor.slice(..), 1));
            parts.extend(inside.parts(spec, &shared.mlp, 0..factor.len()));
        }
        parts
    }
}

/// The numbers of these rows of `width` numbers.
fn of_width(rows: &Range<usize>, width: usize) -> Range<usize> {
    rows.start * width..rows.end * width
}

impl Machine {
    /// The sigmoid in place; with the sigmoid, the gradient of its argument in place of its own.
    fn sigmoid(&self, of: Option<&Buffer<f32>>, x: &Buffer<f32>) -> Result<()> {
        self.run(
            &plan::experts::sigmoid(x.len(), of.is_some()),
            &[self.place(of.unwrap_or(x)), self.place(x)],
        )
    }

    /// Multiplies each row by its factor.
    fn scale_rows(&self, factors: &Buffer<f32>, x: &Buffer<f32>, width: usize) -> Result<()> {
        let there = self.place(factors);
        self.run(
            &plan::experts::scale_rows(factors.len(), width, false),
            // The second is not read.
            &[there, there, self.place(x)],
        )
    }

    /// The dot product of each row of a with that of b.
    fn row_products(&self, a: &Buffer<f32>, b: &Buffer<f32>, width: usize) -> Result<Buffer<f32>> {
        let rows = a.len() / width;
        let products = self.space(rows, "products of rows")?;
        self.run(
            &plan::attention_delta(rows, width),
            &[a, b, &products].map(|buffer| self.place(buffer)),
        )?;
        Ok(products)
    }
}
