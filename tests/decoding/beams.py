"""A beam search that keeps its running beams' tokens itself, as the engine's sequences do."""

from minivllm.decoding import beam_search


class BeamSearch(beam_search.BeamSearch):
    """`beams`: generated tokens of each running beam, in the order of `scores`."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.beams = [()]

    def advance(self, candidates):
        selection = super().advance(candidates, self.beams.__getitem__)
        self.beams = [(*self.beams[beam], token) for beam, token, _ in selection.kept]
        return selection
